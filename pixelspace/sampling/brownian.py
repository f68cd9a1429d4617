"""Noise for stochastic solvers, a function of the seed and the image alone: `noise(sigma, sigma_next) -> N(0, I)`.

`brownian` gives the increments of one Brownian path an image, so that runs of different step counts, and the two draws
in one step of a singlestep SDE solver, follow the same path. `independent` draws afresh at every call.

The path runs in ln sigma. Solvers use unit increments only, and those are unit and independent over disjoint intervals
in whichever monotone coordinate the motion runs; ln sigma is the one in which solvers' steps are most even.
"""

import math

import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.random import Rng
from pixelspace.sampling.step import Level, Noise

_DEPTH = 16  # 65536 leaves: one holds two query points only when steps are shorter than 1/65536 of the range
_KEPT = 8  # levels whose node is kept for the next query, which mostly shares them; the memory is so many images


class _Path:
    """Brownian motion on [0, 1] for a batch: a virtual tree of midpoints.

    The draw of a node is keyed by its place, so that the value at a point does not depend on what was asked before.
    Inside a leaf a point is drawn from the bridge between the leaf's ends, which keeps the variance exact.
    """

    def __init__(self, rng: Rng, images: Tensor, shape: tuple[int, ...], device: torch.device | str) -> None:
        self.rng, self.images, self.shape, self.device = rng, images, shape, device
        self.end = rng.noise("brownian/end", images, shape, device)
        self.nodes: dict[int, tuple[int, Tensor]] = {}  # level: (place, value), of the latest descent
        self.asked: dict[float, Tensor] = {}  # the latest two points: a step begins where the one before ended

    def _bridge(self, name: str, left: Tensor, right: Tensor, width: float, share: float) -> Tensor:
        z = self.rng.noise(f"brownian/{name}", self.images, self.shape, self.device)
        return left.lerp(right, share).add_(z, alpha=math.sqrt(width * share * (1 - share)))

    def _descend(self, u: float) -> Tensor:
        left, right, place = torch.zeros_like(self.end), self.end, 0
        for level in range(_DEPTH):
            kept = self.nodes.get(level)
            if kept is not None and kept[0] == place:
                middle = kept[1]
            else:
                middle = self._bridge(f"{level}/{place}", left, right, 0.5**level, 0.5)
                if level < _KEPT:
                    self.nodes[level] = (place, middle)
            upper = u * 2 ** (level + 1) >= 2 * place + 1
            left, right, place = (middle, right, 2 * place + 1) if upper else (left, middle, 2 * place)
        share = u * 2**_DEPTH - place
        return left if share == 0 else self._bridge(f"leaf/{place}", left, right, 0.5**_DEPTH, share)

    def __call__(self, u: float) -> Tensor:
        """W(u), (B, *shape)."""
        if u in (0.0, 1.0):
            return self.end * u
        if u not in self.asked:
            if len(self.asked) == 2:
                del self.asked[next(iter(self.asked))]
            self.asked[u] = self._descend(u)
        return self.asked[u]

    def increment(self, u: float, v: float) -> Tensor:
        """(W(v) - W(u)) / sqrt|v - u|; 0 for an empty interval."""
        return torch.zeros_like(self.end) if u == v else (self(v) - self(u)) / math.sqrt(abs(v - u))


def brownian(
    rng: Rng,
    images: Tensor,
    shape: tuple[int, ...],
    sigma_min: float,
    sigma_max: float,
    device: torch.device | str = "cpu",
) -> Noise:
    """Unit increments of one Brownian path an image, (B, *shape) float32, for the numbers `images` (B,) int64.

    noise(a, b) = (W(b) - W(a)) / sqrt|b - a| in ln sigma, so its sign turns with the direction; an empty interval gives
    0. The path depends on (seed, image, sigma_min, sigma_max), not on the batch, steps or order of the queries. With
    (B,) sigmas each image has its own interval. Levels that rounding puts outside the range are taken as its ends.

    Raises:
        UserError: no range, or (at the call) a level outside it.
    """
    if not 0 < sigma_min <= sigma_max:
        raise UserError(f"brownian: needs 0 < sigma_min <= sigma_max, found {sigma_min} and {sigma_max}")
    low, width = math.log(sigma_min), math.log(sigma_max / sigma_min)
    images = images.cpu()
    paths: dict[int | None, _Path] = {}

    def coordinate(sigma: float) -> float:
        t = math.log(sigma) - low if sigma > 0 else -math.inf
        if not -1e-4 <= t <= width + 1e-4:
            raise UserError(f"brownian: sigma {sigma} lies outside the path's range, {sigma_min} to {sigma_max}")
        return min(max(t / width, 0.0), 1.0) if width > 0 else 0.0

    def path(row: int | None) -> _Path:
        if row not in paths:
            paths[row] = _Path(rng, images if row is None else images[row : row + 1], shape, device)
        return paths[row]

    def noise(sigma: Level, sigma_next: Level) -> Tensor:
        if isinstance(sigma, Tensor) and isinstance(sigma_next, Tensor):
            pairs = zip(sigma.tolist(), sigma_next.tolist(), strict=True)
            return torch.cat([path(i).increment(coordinate(a), coordinate(b)) for i, (a, b) in enumerate(pairs)])
        return path(None).increment(coordinate(float(sigma)), coordinate(float(sigma_next)))

    return noise


def independent(rng: Rng, images: Tensor, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Noise:
    """Fresh noise (B, *shape) float32 at every call, keyed by (seed, image, how many calls the image has had).

    With (B,) sigmas an image whose interval is empty gets 0, and the call is none of its own.
    """
    images = images.cpu()
    calls = [0] * len(images)

    def noise(sigma: Level, sigma_next: Level) -> Tensor:
        moves = [True] * len(images)
        if isinstance(sigma, Tensor) and isinstance(sigma_next, Tensor):
            moves = (sigma != sigma_next).tolist()
        out = torch.zeros(len(images), *shape, device=device)
        for i, moving in enumerate(moves):
            if moving:
                out[i] = rng.noise(f"independent/{calls[i]}", images[i : i + 1], shape, device)[0]
                calls[i] += 1
        return out

    return noise
