"""Log-likelihood against k-diffusion's and against a closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from pixelspace.errors import NumericalError, UserError
from pixelspace.sampling.likelihood import _ERROR, _NODES, _ROWS, log_likelihood

DATA_STD = 0.5


def test_the_tableau_has_order_5():
    """Butcher's conditions in one node power; consistency of each row; the error estimate sums to nothing."""
    for node, row in zip(_NODES, _ROWS, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-15)
    last = (*_ROWS[-1], 0.0)
    for power in range(5):
        assert sum(b * c**power for b, c in zip(last, _NODES, strict=True)) == pytest.approx(1 / (power + 1), abs=1e-14)
    for power in range(4):
        assert sum(e * c**power for e, c in zip(_ERROR, _NODES, strict=True)) == pytest.approx(0, abs=1e-15)


def test_the_log_likelihood_of_a_mixture_is_that_of_k_diffusion(golden, mixture):
    tensors = golden("hdit/samplers")
    found = log_likelihood(mixture, tensors["loglik/x"], 0.02, 20.0, rtol=1e-7, atol=1e-7, v=tensors["loglik/v"])
    torch.testing.assert_close(found, tensors["loglik/ll_tol1e-07"], rtol=0, atol=1e-3)
    rough = log_likelihood(mixture, tensors["loglik/x"], 0.02, 20.0, v=tensors["loglik/v"])
    torch.testing.assert_close(rough, found, rtol=0, atol=2e-2)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_the_log_likelihood_of_a_gaussian_is_exact(dtype, close, gaussian):
    """Its Jacobian is a multiple of 1, for which any probe of signs gives the true divergence."""
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * DATA_STD
    low, high, tol = 0.02, 50.0, close / 100
    g = torch.Generator().manual_seed(1)
    found = log_likelihood(gaussian, x.to(dtype), low, high, rtol=tol, atol=tol, generator=g)
    growth = (DATA_STD**2 + high**2) / (DATA_STD**2 + low**2)
    energy = (x**2 * growth / high**2).flatten(1).sum(1) / 2
    expected = 16 * math.log(growth) - energy - 16 * math.log(2 * math.pi * high**2)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=close)


class Attention(nn.Module):
    """A residual of fused attention over the tokens (B, L, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, dtype=torch.float64)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        q, k, v = self.qkv(x / (1 + sigma**2).sqrt()).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return (x + sigma * attended) / (1 + sigma**2)


def test_denoisers_with_fused_attention_have_a_likelihood_whatever_their_batch():
    torch.manual_seed(0)
    net, g = Attention(), torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 3, 4, 8, dtype=torch.float64, generator=g)
    with torch.no_grad():
        together = log_likelihood(net, x, 0.05, 20.0, rtol=1e-6, atol=1e-6, v=v.sign())
        for i in range(3):
            alone = log_likelihood(net, x[i : i + 1], 0.05, 20.0, rtol=1e-6, atol=1e-6, v=v[i : i + 1].sign())
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-4)
    assert net.qkv.weight.grad is None


def test_probes_over_all_signs_average_to_the_exact_divergence():
    """Of a linear denoiser the mean over Hutchinson's probes is the likelihood of its Gaussian."""
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, dtype=torch.float64, generator=g)
    covariance, one = root @ root.T, torch.eye(3, dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x @ torch.linalg.solve(covariance + sigma[0] ** 2 * one, covariance)

    x = torch.randn(1, 3, dtype=torch.float64, generator=g)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    high = 1e3
    found = log_likelihood(denoise, x.expand(8, 3), 0.1, high, rtol=1e-8, atol=1e-8, v=signs).mean()
    normal = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance + 0.01 * one)
    torch.testing.assert_close(found, normal.log_prob(x[0]), rtol=0, atol=1e-4)


def test_a_missing_probe_is_an_error(gaussian):
    with pytest.raises(UserError, match="pass v= or generator="):
        log_likelihood(gaussian, torch.ones(1, 2), 0.1, 1.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_a_range_that_cannot_be_meant_is_an_error(low, high, gaussian):
    with pytest.raises(UserError, match="needs 0 < sigma_min < sigma_max"):
        log_likelihood(gaussian, torch.ones(1, 2), low, high, v=torch.ones(1, 2))


def test_a_denoiser_without_gradients_is_an_error(gaussian):
    with pytest.raises(UserError, match="must be differentiable"):
        log_likelihood(torch.no_grad()(gaussian), torch.ones(1, 2), 0.1, 1.0, v=torch.ones(1, 2))


def test_values_that_are_not_finite_end_the_run():
    with pytest.raises(NumericalError, match="not finite"):
        log_likelihood(lambda x, sigma: x * float("nan"), torch.ones(1, 2), 0.1, 1.0, v=torch.ones(1, 2))
