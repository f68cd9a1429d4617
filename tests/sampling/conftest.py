"""Denoisers in closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

DATA_STD = 0.5


@pytest.fixture(scope="session")
def gaussian() -> Callable[[Tensor, Tensor], Tensor]:
    """The optimal denoiser of N(0, DATA_STD^2) pixels; along its ODE x / sqrt(DATA_STD^2 + sigma^2) is constant."""
    return lambda x, sigma: x * DATA_STD**2 / (DATA_STD**2 + sigma**2)


@pytest.fixture(scope="session")
def mixture(golden) -> Callable[[Tensor, Tensor], Tensor]:
    """The optimal denoiser of the goldens' Gaussian mixture over whole images."""
    tensors = golden("hdit/samplers")
    weights, stds, means = (tensors[f"gmm/{name}"] for name in ("weights", "stds", "means"))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        variance = stds**2 + sigma.reshape(-1, 1) ** 2  # (B, K)
        squares = (x[:, None] - means).square().flatten(2).sum(2)
        size = x[0].numel()
        share = torch.softmax(weights.log() - squares / (2 * variance) - size / 2 * variance.log(), 1)
        ones = (1,) * (x.ndim - 1)
        share, variance, s2 = (t.reshape(*t.shape, *ones) for t in (share, variance, (stds**2).expand_as(variance)))
        noise2 = sigma[:, None] ** 2
        return (share * (s2 * x[:, None] + noise2 * means) / variance).sum(1)

    return denoise
