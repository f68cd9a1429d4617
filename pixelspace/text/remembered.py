"""Captions of a small data set, read once and kept in memory."""

from collections.abc import Sequence

import torch

from pixelspace.text.encoder import Encoded, Reader


class Remembered(Reader):
    """A reader that reads no caption twice.

    Each is read by itself, so that what it means does not depend, to the last bit, on which others first came with it:
    a run that goes on after a stop meets them in other company.
    """

    def __init__(self, reader: Reader):
        self.reader, self.known = reader, dict[str, Encoded]()
        self.width, self.pooled_width, self.identity = reader.width, reader.pooled_width, reader.identity

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
