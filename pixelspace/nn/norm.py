"""Root-mean-square norms (Zhang and Sennrich 2019), plain and conditioned."""

import torch
from torch import Tensor, nn

from pixelspace.nn.linear import Linear


def rms_norm(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """x scale / rms(x) over the last axis; the factor is computed in float32 or better and then cast to x's dtype."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, scale.dtype), torch.float32)
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square() / x.shape[-1]
    return x * (scale.to(dtype) * (mean_square + eps).rsqrt()).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS norm with a learnt scale."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class AdaRMSNorm(nn.Module):
    """RMS norm whose scale is 1 + a linear map of the condition, which starts at 0 (Crowson et al. 2024, section 4.2).

    x (B, ..., D), cond (B, M).
    """

    def __init__(self, width: int, cond_width: int):
        super().__init__()
        self.linear = Linear(cond_width, width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale = 1 + self.linear(cond)
        return rms_norm(x, scale.reshape(len(x), *(1,) * (x.ndim - 2), -1))
