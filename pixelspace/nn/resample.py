"""Token grids to coarser grids and back."""

import torch
from einops import rearrange
from torch import Tensor, nn

from pixelspace.nn.linear import Linear


class TokenMerge(nn.Module):
    """(B, h a, w b, D) to (B, h, w, width): each a x b patch becomes one token."""

    def __init__(self, width_in: int, width_out: int, patch: tuple[int, int] = (2, 2)):
        super().__init__()
        self.patch = patch
        self.proj = Linear(width_in * patch[0] * patch[1], width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.patch
        return self.proj(rearrange(x, "n (h a) (w b) d -> n h w (a b d)", a=a, b=b))


def _split(x: Tensor, patch: tuple[int, int]) -> Tensor:
    return rearrange(x, "n h w (a b d) -> n (h a) (w b) d", a=patch[0], b=patch[1])


class TokenSplit(nn.Module):
    """(B, h, w, D) to (B, h a, w b, width): each token becomes an a x b patch."""

    def __init__(self, width_in: int, width_out: int, patch: tuple[int, int]):
        super().__init__()
        self.patch = patch
        self.proj = Linear(width_in, width_out * patch[0] * patch[1], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return _split(self.proj(x), self.patch)


class TokenSplitSkip(nn.Module):
    """(B, h, w, D) to (B, 2 h, 2 w, width): split, then a learnt interpolation from the skip (0) to the split (1)."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.proj = Linear(width_in, 4 * width_out, bias=False)
        self.fac = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = _split(self.proj(x), (2, 2))
        return torch.lerp(skip.to(up.dtype), up, self.fac.to(up.dtype))
