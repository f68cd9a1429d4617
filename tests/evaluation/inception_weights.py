"""Random weights of FID-Inception, each tensor a function of its name."""

import zlib

import numpy as np
import torch


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """By the recipe of goldens/metrics/inception_arch."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("conv.weight"):
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif name == "fc.weight":
        z = z / np.sqrt(2048)
    elif name.endswith("bn.weight"):
        z = 1 + 0.1 * z
    elif name.endswith("running_var"):
        z = 1 + 0.2 * np.abs(z)
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))
