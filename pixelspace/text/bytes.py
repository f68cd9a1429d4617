"""Text as its bytes: what needs neither weights nor packages. What they mean the network learns with everything else,
by layers of its own over them (`nn.text.Text.depth`)."""

from collections.abc import Sequence

import torch

from pixelspace.config import value
from pixelspace.text.encoder import Encoded, Reader, TextEncoder, check_unicode

_SYMBOLS = 256


class ByteReader(Reader):
    """Each byte of UTF-8 as one of 256 unit rows, and a zero byte at the end; pooled is how often each occurs."""

    width = pooled_width = _SYMBOLS

    def __init__(self, length: int, fill: bool, device: torch.device):
        self.length, self.fill, self.device, self.identity = length, fill, device, f"bytes up to {length}"

    def lengths(self, texts: Sequence[str]) -> list[int]:
        check_unicode(texts)
        return [len(text.encode()) + 1 for text in texts]

    def __call__(self, texts: Sequence[str]) -> Encoded:
        check_unicode(texts)
        rows = [[*text.encode()[: self.length - 1], 0] for text in texts]
        length = self.length if self.fill else max(map(len, rows), default=1)
        filled = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        ends = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(length, device=self.device) < ends[:, None]
        tokens = torch.nn.functional.one_hot(filled, _SYMBOLS).float() * mask[..., None]
        return Encoded(tokens, mask, tokens.sum(1) / ends[:, None])


@value
class Bytes(TextEncoder):
    """Text as up to `length` bytes of UTF-8."""

    length: int = 96
    fill: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.length <= 8192:
            raise ValueError(f"Bytes: length must be from 2 to 8192, found {self.length}")

    def open(self, device: torch.device) -> ByteReader:
        return ByteReader(self.length, self.fill, device)
