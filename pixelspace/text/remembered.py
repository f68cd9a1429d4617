"""Captions of a small data set, read once and kept in memory."""

from collections.abc import Iterable, Sequence

import torch

from pixelspace.text.encoder import Encoded, Reader

_BATCH = 64


class Remembered(Reader):
    """A reader that has read `texts` before anything else, and reads no caption twice.

    They are read in an order of their own, and others by themselves, so that what a caption means does not depend, to
    the last bit, on which came with it first: a run that goes on after a stop meets them in other company.
    """

    def __init__(self, reader: Reader, texts: Iterable[str]):
        self.reader, self.known = reader, dict[str, Encoded]()
        self.width, self.pooled_width, self.identity = reader.width, reader.pooled_width, reader.identity
        ordered = sorted({*texts, ""}, key=lambda text: (len(text), text))
        for start in range(0, len(ordered), _BATCH):
            some = ordered[start : start + _BATCH]
            found = reader(some)
            for i, text in enumerate(some):
                rows = (found.tokens[i : i + 1], found.mask[i : i + 1], found.pooled[i : i + 1])
                self.known[text] = Encoded(*(row.clone() for row in rows))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return self.reader.lengths(texts)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        for text in texts:
            if text not in self.known:
                self.known[text] = self.reader([text])
        found = [self.known[text] for text in texts]
        tokens = torch.zeros(len(texts), max(one.tokens.shape[1] for one in found), self.width)
        tokens = tokens.to(found[0].tokens.device)
        mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        for i, one in enumerate(found):
            length = one.tokens.shape[1]
            tokens[i, :length], mask[i, :length] = one.tokens[0], one.mask[0]
        return Encoded(tokens, mask, torch.cat([one.pooled for one in found]))
