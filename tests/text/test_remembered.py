"""Captions kept in memory are those that were read, whatever came with them."""

import torch

from pixelspace.text.bytes import Bytes
from pixelspace.text.remembered import Remembered

CPU = torch.device("cpu")


class Counting:
    """A reader that tells what it was asked."""

    def __init__(self, reader):
        self.reader, self.asked = reader, []
        self.width, self.pooled_width, self.identity = reader.width, reader.pooled_width, reader.identity

    def __call__(self, texts):
        self.asked += texts
        return self.reader(texts)


def test_no_caption_is_read_twice_and_none_is_changed():
    plain = Bytes(12).open(CPU)
    counting = Counting(plain)
    remembered = Remembered(counting, ["a dog", "a cat", "a dog"])  # type: ignore[arg-type]
    assert counting.asked == ["", "a cat", "a dog"]
    for texts in (["a cat", "", "a dog"], ["a dog", "a dog", "a bird"]):
        found, expected = remembered(texts), plain(texts)
        assert all(torch.equal(a, b) for a, b in zip(found.cond().values(), expected.cond().values(), strict=True))
    assert sorted(counting.asked) == ["", "a bird", "a cat", "a dog"] and remembered.identity == plain.identity
