"""From seeds to images: how a recipe samples, and the batches that do it.

Image i of seed s has its own noise, keyed (s, i), so that it does not depend on how many are made or in what batches.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import NumericalError, UserError
from pixelspace.noise.levels import Karras, Levels, grid
from pixelspace.noise.process import Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.random import Rng
from pixelspace.sampling.brownian import brownian, independent
from pixelspace.sampling.denoiser import denoiser, guided_by
from pixelspace.sampling.guidance import guidance_interval
from pixelspace.sampling.pyramid import Packing
from pixelspace.sampling.solvers import SOLVERS, settings_of
from pixelspace.sampling.step import Noise, Step
from pixelspace.sampling.threshold import THRESHOLDS, thresholded
from pixelspace.types import Cond

Setting = float | int | str | bool


@value
class Sampling:
    """How images are made: solver, schedule and guidance.

    `settings` are the solver's own, as (name, value) pairs. Guidance other than 1 holds for guidance_low < sigma <=
    guidance_high (None: no bound; Kynkäänniemi et al. 2024). `threshold` keeps every estimate of the image in range:
    clip at 1, or dynamic (Saharia et al. 2022), at the quantile 0.995 or, as DeepFloyd has it, 0.95 and at most 1.5.
    """

    solver: str = "dpmpp_3m_sde"
    steps: int = 50
    levels: Levels = Karras(0.01, 160.0)
    guidance: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float | None = None
    settings: tuple[tuple[str, Setting], ...] = ()
    threshold: Literal["none", "clip", "dynamic", "deepfloyd"] = "none"

    def __post_init__(self) -> None:
        settings_of(self.solver, dict(self.settings))
        if not 1 <= self.steps <= 100_000:
            raise UserError(f"steps must be from 1 to 100,000, found {self.steps}")
        if self.guidance < 0:
            raise UserError(f"guidance cannot be negative, found {self.guidance}")
        grid(self.levels, self.steps)


def _spread(noise: Noise, pyramid: Pyramid) -> Noise:
    """Noise of every level of a pyramid."""
    return lambda sigma, sigma_next: pyramid.spread(noise(sigma, sigma_next))


def generate(
    backbone: Callable[..., Any],
    process: Process,
    sampling: Sampling,
    *,
    images: Tensor,
    shape: tuple[int, ...],
    cond: Cond,
    null: Cond,
    seed: int,
    batch: int,
    exact: bool = False,
    callback: Callable[[Step], None] | None = None,
    pyramid: Pyramid | None = None,
    every_level: bool = False,
) -> Iterator[Tensor]:
    """Batches of x0 (b, *shape), for the numbers `images` (n,) int64 on the device that computes.

    `cond` and `null` (without guidance unused) hold n rows. With `exact` the last batch is filled up, so that every
    image is computed in a batch of the same size and has the same bits in any call. `callback` is called at every step
    of a batch, with what is returned of it, if no step came after.

    With a `pyramid` the backbone draws all its levels at once and the finest is given; with `every_level` all of them,
    as rows (b, N) that `Packing(pyramid, shape).unpack` takes apart.

    Raises:
        NumericalError: an image that is not finite.
    """
    sigmas = grid(sampling.levels, sampling.steps)
    solve = SOLVERS[sampling.solver].function
    rng = Rng(seed)
    packing = Packing(pyramid, shape) if pyramid else None
    state = pyramid.drawn(shape) if pyramid else shape
    under = partial(packing.denoiser if packing else denoiser, backbone, process)
    threshold = THRESHOLDS[sampling.threshold]
    if packing:
        threshold = packing.each(threshold)
    for start in range(0, len(images), batch):
        rows = torch.arange(start, min(start + batch, len(images)), device=images.device)
        count = len(rows)
        if exact and count < batch:
            rows = torch.cat([rows, rows[-1:].expand(batch - count)])
        numbers = images[rows]
        some, none = ({key: tensor[rows] for key, tensor in c.items()} for c in (cond, null))
        denoise = under(some)
        if sampling.guidance != 1:
            with_guidance = guided_by(under, some, none, sampling.guidance)
            high = float("inf") if sampling.guidance_high is None else sampling.guidance_high
            denoise = guidance_interval(with_guidance, denoise, sampling.guidance_low, high)
        if sampling.threshold != "none":
            denoise = thresholded(denoise, threshold)
        z = rng.noise("start", numbers, state, images.device)
        x = packing.start(packing.pyramid.spread(z), float(sigmas[0])) if packing else z * float(sigmas[0])
        if SOLVERS[sampling.solver].brownian:
            noise = brownian(rng, numbers, state, float(sigmas[-2]), float(sigmas[0]), images.device)
        else:
            noise = independent(rng, numbers, state, images.device)
        if packing:
            noise = _spread(noise, packing.pyramid)

        def given(rows: Tensor, count: int = count) -> Tensor:
            return rows[:count] if packing is None or every_level else packing.unpack(rows[:count])[0]

        def step(info: Step, given: Callable[[Tensor], Tensor] = given) -> None:
            if callback is not None:
                callback(info._replace(x=given(info.x), denoised=given(info.denoised)))

        x0 = solve(denoise, x, sigmas, noise=noise, callback=step, **dict(sampling.settings))[:count]
        finite = x0.flatten(1).isfinite().all(1)
        if not finite.all():
            bad = int(images[rows[:count][~finite][0]])
            raise NumericalError(f"image {bad} of seed {seed} is not finite; the weights or the settings are unsound")
        yield given(x0)
