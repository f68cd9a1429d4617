"""Solvers of the diffusion ODE and SDE on a fixed schedule, and the table of all solvers.

Every solver is `solver(denoise, x, sigmas, *, noise, callback, its settings) -> x0`: from x (B, ...) at sigmas[0] down
the schedule (n + 1,), n steps. `denoise(x, sigma)` gets sigma as (B, 1, ..., 1). If the schedule ends above 0, what is
returned is x at its last level. `noise(sigma, sigma_next)` is called at every step, even where its factor is 0; without
it a solver runs only at settings that add none. Settings have k-diffusion's names (Crowson et al.); churn is that of
Karras et al. 2022, Algorithm 2, and eta scales the noise of ancestral and SDE steps: 0 is the ODE.

All formulas are elementwise in x, so that several resolutions may be packed into one state.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from pixelspace.config import nearest
from pixelspace.errors import UserError
from pixelspace.sampling.denoiser import Denoise
from pixelspace.sampling.dpm_solver import dpm_adaptive, dpm_fast
from pixelspace.sampling.step import (
    Callback,
    Noise,
    ancestral,
    check,
    checked_noise,
    column,
    observed,
    schedule,
    slope,
    towards,
)


class _Churn(NamedTuple):
    """Raises sigma before a step, by at most a factor of sqrt(2) (Karras et al. 2022, Algorithm 2, lines 4 to 6)."""

    noise: Noise
    gamma: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, float]:
        z = self.noise(sigma, sigma_next)
        if self.gamma == 0 or not self.s_tmin <= sigma <= self.s_tmax:
            return x, sigma
        sigma_hat = sigma * (1 + self.gamma)
        return x + z * (self.s_noise * math.sqrt(sigma_hat**2 - sigma**2)), sigma_hat


def _churn(
    solver: str,
    x: Tensor,
    steps: int,
    noise: Noise | None,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
) -> _Churn:
    check(solver, s_churn=(s_churn < 0, "0 or more", s_churn))
    gamma = min(s_churn / steps, math.sqrt(2) - 1)
    return _Churn(checked_noise(noise, x, solver, needed=gamma > 0), gamma, s_tmin, s_tmax, s_noise)


def _eta_noise(solver: str, x: Tensor, noise: Noise | None, eta: float) -> Noise:
    check(solver, eta=(eta < 0, "0 or more", eta))
    return checked_noise(noise, x, solver, needed=eta > 0)


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's method, which is DDIM, with churn (Karras et al. 2022, Algorithm 2 without its second-order part)."""
    levels, evaluate = schedule(sigmas), observed(denoise, callback)
    churn = _churn("euler", x, len(levels) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x, sigma_hat = churn(x, sigma, sigma_next)
        x = towards(evaluate(i, x, sigma, sigma_hat), x, sigma_next / sigma_hat)
    return x


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler steps with ancestral noise: DDPM at eta 1, DDIM at eta 0 (Song et al. 2021, DDIM, Eq. 12)."""
    z, evaluate = _eta_noise("euler_ancestral", x, noise, eta), observed(denoise, callback)
    for i, (sigma, sigma_next) in enumerate(pairwise(schedule(sigmas))):
        down, up = ancestral(sigma, sigma_next, eta)
        x = towards(evaluate(i, x, sigma, sigma), x, down / sigma)
        if sigma_next > 0:
            x = x + z(sigma, sigma_next) * (s_noise * up)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's method with churn (Karras et al. 2022, Algorithm 2); an Euler step where the next sigma is 0."""
    levels, evaluate = schedule(sigmas), observed(denoise, callback)
    churn = _churn("heun", x, len(levels) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x, sigma_hat = churn(x, sigma, sigma_next)
        denoised = evaluate(i, x, sigma, sigma_hat)
        there = towards(denoised, x, sigma_next / sigma_hat)
        if sigma_next == 0:
            return there
        ahead = slope(there, denoise(there, column(sigma_next, x)), sigma_next)
        x = x + (slope(x, denoised, sigma_hat) + ahead) * ((sigma_next - sigma_hat) / 2)
    return x


def _midpoint(denoise: Denoise, x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """DPM-Solver-2's step, whose midpoint is even in ln sigma (Lu et al. 2022); Euler's where sigma_next is 0."""
    if sigma_next == 0:
        return denoised
    middle = math.sqrt(sigma * sigma_next)
    half = towards(denoised, x, middle / sigma)
    return x + slope(half, denoise(half, column(middle, x)), middle) * (sigma_next - sigma)


def dpm_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-2's steps (Lu et al. 2022) with the churn of Karras et al. 2022."""
    levels, evaluate = schedule(sigmas), observed(denoise, callback)
    churn = _churn("dpm_2", x, len(levels) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x, sigma_hat = churn(x, sigma, sigma_next)
        x = _midpoint(denoise, x, evaluate(i, x, sigma, sigma_hat), sigma_hat, sigma_next)
    return x


def dpm_2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-2's steps (Lu et al. 2022) with ancestral noise."""
    z, evaluate = _eta_noise("dpm_2_ancestral", x, noise, eta), observed(denoise, callback)
    for i, (sigma, sigma_next) in enumerate(pairwise(schedule(sigmas))):
        down, up = ancestral(sigma, sigma_next, eta)
        x = _midpoint(denoise, x, evaluate(i, x, sigma, sigma), sigma, down)
        if sigma_next > 0:
            x = x + z(sigma, sigma_next) * (s_noise * up)
    return x


def _adams_bashforth(nodes: Sequence[float], end: float) -> list[float]:
    """The integral from nodes[0] to `end` of each Lagrange basis polynomial on `nodes`, exactly."""
    start, width = nodes[0], end - nodes[0]
    roots = [(node - start) / width for node in nodes]
    weights = []
    for j, own in enumerate(roots):
        powers = [1.0]  # coefficients of the basis polynomial, lowest first
        for root in roots[:j] + roots[j + 1 :]:
            up, here = [0.0, *powers], [*powers, 0.0]
            powers = [(a - root * b) / (own - root) for a, b in zip(up, here, strict=True)]
        weights.append(width * sum(power / (k + 1) for k, power in enumerate(powers)))
    return weights


def lms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    order: int = 4,
) -> Tensor:
    """The Adams-Bashforth linear multistep method in sigma, of order 1, 2, ... `order`; draws no noise."""
    check("lms", order=(not 1 <= order <= 10, "from 1 to 10", order))
    levels, evaluate = schedule(sigmas), observed(denoise, callback)
    slopes: list[Tensor] = []  # latest first
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        slopes = [slope(x, evaluate(i, x, sigma, sigma), sigma), *slopes[: order - 1]]
        nodes = levels[i + 1 - len(slopes) : i + 1][::-1]
        for weight, d in zip(_adams_bashforth(nodes, sigma_next), slopes, strict=True):
            x = x + d * weight
    return x


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1) with ancestral noise."""
    z, evaluate = _eta_noise("dpmpp_2s_ancestral", x, noise, eta), observed(denoise, callback)
    for i, (sigma, sigma_next) in enumerate(pairwise(schedule(sigmas))):
        down, up = ancestral(sigma, sigma_next, eta)
        denoised = evaluate(i, x, sigma, sigma)
        if down > 0:
            middle = math.sqrt(sigma * down)
            denoised = denoise(towards(denoised, x, middle / sigma), column(middle, x))
        x = towards(denoised, x, down / sigma)
        if sigma_next > 0:
            x = x + z(sigma, sigma_next) * (s_noise * up)
    return x


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Tensor:
    """DPM-Solver++ (Lu et al. 2022b), singlestep, second order, as an SDE; its inner point is at the share `r`.

    Calls noise twice a step, for the inner point and for the whole step, so that only a Brownian path fits them.
    """
    check("dpmpp_sde", r=(not 0 < r <= 1, "above 0 and at most 1", r))
    z, evaluate = _eta_noise("dpmpp_sde", x, noise, eta), observed(denoise, callback)
    for i, (sigma, sigma_next) in enumerate(pairwise(schedule(sigmas))):
        denoised = evaluate(i, x, sigma, sigma)
        if sigma_next == 0:
            return denoised
        middle = sigma ** (1 - r) * sigma_next**r
        down, up = ancestral(sigma, middle, eta)
        inner = towards(denoised, x, down / sigma) + z(sigma, middle) * (s_noise * up)
        mixed = denoised.lerp(denoise(inner, column(middle, x)), 1 / (2 * r))
        down, up = ancestral(sigma, sigma_next, eta)
        x = towards(mixed, x, down / sigma) + z(sigma, sigma_next) * (s_noise * up)
    return x


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2); draws no noise."""
    evaluate = observed(denoise, callback)
    before, h_before = x, math.inf  # an infinite step before the first: no history
    for i, (sigma, sigma_next) in enumerate(pairwise(schedule(sigmas))):
        denoised = evaluate(i, x, sigma, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        x = towards(denoised + (denoised - before) * (h / (2 * h_before)), x, sigma_next / sigma)
        before, h_before = denoised, h
    return x


def _phi_2(h: float) -> float:
    return 1 + math.expm1(-h) / h


def _phi_3(h: float) -> float:
    return _phi_2(h) / h - 0.5


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
) -> Tensor:
    """DPM-Solver++(2M) as an SDE (Lu et al. 2022b); `solver_type` midpoint or heun. Calls no noise at eta 0."""
    kinds = ("midpoint", "heun")
    check("dpmpp_2m_sde", solver_type=(solver_type not in kinds, "'midpoint' or 'heun'", solver_type))
    z, evaluate = _eta_noise("dpmpp_2m_sde", x, noise, eta), observed(denoise, callback)
    before, h_before = x, math.inf
    for i, (sigma, sigma_next) in enumerate(pairwise(schedule(sigmas))):
        denoised = evaluate(i, x, sigma, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        h_eta = h * (1 + eta)
        second = -math.expm1(-h_eta) / 2 if solver_type == "midpoint" else _phi_2(h_eta)
        x = towards(denoised, x, math.exp(-h_eta)) + (denoised - before) * (second * h / h_before)
        if eta > 0:
            x = x + z(sigma, sigma_next) * (s_noise * sigma_next * math.sqrt(-math.expm1(-2 * eta * h)))
        before, h_before = denoised, h
    return x


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Tensor:
    """k-diffusion's DPM-Solver++(3M) SDE, of order 1 and 2 at the first two steps. Calls no noise at eta 0.

    The published rule weighs the second difference by phi_3 where the exact integral has 2 phi_3, so that the order is
    2 after all; it is kept, because models were tuned and judged with it.
    """
    z, evaluate = _eta_noise("dpmpp_3m_sde", x, noise, eta), observed(denoise, callback)
    past: list[tuple[Tensor, float]] = []  # (denoised, h), latest first
    for i, (sigma, sigma_next) in enumerate(pairwise(schedule(sigmas))):
        denoised = evaluate(i, x, sigma, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        h_eta = h * (1 + eta)
        x = towards(denoised, x, math.exp(-h_eta))
        if past:
            (before, h_1), *older = past
            first = (denoised - before) * (h / h_1)  # divided differences of denoised in ln sigma, in units of h
            if older:
                (oldest, h_2) = older[0]
                bend = (first - (before - oldest) * (h / h_2)) * (h / (h_1 + h_2))
                x = x + (first + bend * (h_1 / h)) * _phi_2(h_eta) - bend * _phi_3(h_eta)
            else:
                x = x + first * _phi_2(h_eta)
        if eta > 0:
            x = x + z(sigma, sigma_next) * (s_noise * sigma_next * math.sqrt(-math.expm1(-2 * eta * h)))
        past = [(denoised, h), *past[:1]]
    return x


class Solver(NamedTuple):
    """A solver and its order of convergence on the ODE; whether it can draw noise, and if that should be a Brownian
    path (`brownian`) rather than fresh at every call (`independent`).

    Multistep methods start at lower orders; lms shows its order only where the first steps are much shorter.
    """

    function: Callable[..., Tensor]
    order: int
    stochastic: bool
    brownian: bool = False


SOLVERS = {
    "euler": Solver(euler, 1, stochastic=True),
    "euler_ancestral": Solver(euler_ancestral, 1, stochastic=True),
    "heun": Solver(heun, 2, stochastic=True),
    "dpm_2": Solver(dpm_2, 2, stochastic=True),
    "dpm_2_ancestral": Solver(dpm_2_ancestral, 2, stochastic=True),
    "lms": Solver(lms, 4, stochastic=False),
    "dpm_fast": Solver(dpm_fast, 3, stochastic=True),
    "dpm_adaptive": Solver(dpm_adaptive, 3, stochastic=True),
    "dpmpp_2s_ancestral": Solver(dpmpp_2s_ancestral, 2, stochastic=True),
    "dpmpp_sde": Solver(dpmpp_sde, 2, stochastic=True, brownian=True),
    "dpmpp_2m": Solver(dpmpp_2m, 2, stochastic=False),
    "dpmpp_2m_sde": Solver(dpmpp_2m_sde, 2, stochastic=True, brownian=True),
    "dpmpp_3m_sde": Solver(dpmpp_3m_sde, 2, stochastic=True, brownian=True),
}


def settings_of(name: str, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A solver's settings with their defaults, read from its signature, overlaid by the `chosen` ones.

    Raises:
        UserError: no such solver or setting, or a setting of another type than its default.
    """
    if name not in SOLVERS:
        raise UserError(f"no solver {name!r}; {nearest(name, SOLVERS)}")
    parameters = inspect.signature(SOLVERS[name].function).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("noise", "callback")]
    settings = {p.name: p.default for p in own}
    for key, found in (chosen or {}).items():
        if key not in settings:
            raise UserError(f"{name} has no setting {key!r}; {nearest(key, settings)}")
        default = settings[key]
        wanted = int if default is None else type(default)
        if type(found) is not wanted and not (wanted is float and type(found) is int):
            raise UserError(f"{name}: {key} must be of type {wanted.__name__}, found {found!r}")
    return {**settings, **(chosen or {})}
