"""Text as its bytes."""

import pytest
import torch

from pixelspace.text.bytes import Bytes

CPU = torch.device("cpu")


def test_bytes_are_unit_rows_that_spell_the_text():
    encoded = Bytes(8).open(CPU)(["añ", ""])
    assert encoded.tokens.shape == (2, 8, 256) and encoded.mask.sum(1).tolist() == [4, 1]
    spelt = encoded.tokens.argmax(2)
    assert bytes(spelt[0, :4].tolist()) == "añ".encode() + b"\0" and bool((encoded.tokens.sum(2) == encoded.mask).all())
    torch.testing.assert_close(encoded.pooled.sum(1), torch.ones(2))
    assert encoded.pooled[0, ord("a")] == 0.25 and encoded.pooled[1, 0] == 1


def test_long_text_is_cut_and_its_length_told():
    reader = Bytes(4).open(CPU)
    encoded = reader(["abcdef"])
    assert bytes(encoded.tokens.argmax(2)[0].tolist()) == b"abc\0" and bool(encoded.mask.all())
    assert reader.lengths(["abcdef", ""]) == [7, 1]
    with pytest.raises(ValueError, match="length must be from 2 to 8192"):
        Bytes(1)
