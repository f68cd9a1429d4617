"""What guidance does, on numbers whose denoiser is known in closed form: python examples/guidance.py

Two classes of points on a line, N(-1, 0.5^2) and N(1, 0.5^2). Guided towards the second, points leave the first and
crowd together: the mean goes beyond 1 and the deviation below 0.5. Guidance 1 is the class itself.
"""

import torch

from pixelspace.noise.levels import Karras, grid
from pixelspace.sampling.solvers import SOLVERS

MEANS, DEVIATION = (-1.0, 1.0), 0.5


def of_class(x, sigma, mean):
    return mean + DEVIATION**2 / (DEVIATION**2 + sigma**2) * (x - mean)


def of_both(x, sigma):
    logits = torch.stack([-((x - mean) ** 2) / (2 * (DEVIATION**2 + sigma**2)) for mean in MEANS])
    return (logits.softmax(0) * torch.stack([of_class(x, sigma, mean) for mean in MEANS])).sum(0)


def drawn(scale: float, n: int = 20_000) -> torch.Tensor:
    def denoise(x, sigma):
        plain = of_both(x, sigma)
        return plain + scale * (of_class(x, sigma, MEANS[1]) - plain)

    sigmas = grid(Karras(0.002, 80.0), 40)
    x = sigmas[0] * torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return SOLVERS["heun"].function(denoise, x, sigmas)


if __name__ == "__main__":
    for scale in (1.0, 2.0, 4.0):
        x = drawn(scale)
        print(f"guidance {scale:g}: mean {x.mean():.3f}, deviation {x.std():.3f}")
