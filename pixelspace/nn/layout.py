"""The order of an image's numbers in memory: which one convolutions are quick with."""

import torch
from torch import Tensor

# Of so many places (H W) on convolutions on a CPU are quicker with the channels of a place side by side; CUDA's always
# are. Weights stay in one order everywhere: sharding, fused optimisers and stored moments know no other.
PLACES_ON_CPU = 1024


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) with the channels of a place side by side in memory; convolutions hand the layout on."""
    return x.contiguous(memory_format=torch.channels_last)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a place of x (B, C, H, W) stand side by side."""
    return x.is_contiguous(memory_format=torch.channels_last)


def laid_out(x: Tensor) -> Tensor:
    """x (B, C, H, W) as convolutions on its device are quickest."""
    few = x.device.type != "cuda" and x.shape[2] * x.shape[3] < PLACES_ON_CPU
    return x if few else channels_last(x)
