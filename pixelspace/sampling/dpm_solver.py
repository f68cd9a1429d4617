"""DPM-Solver (Lu et al. 2022): orders 1 to 3 in t = -ln sigma, on even steps (`dpm_fast`) or adaptive ones.

Both go from sigmas[0] to the last positive level of `sigmas` by steps of their own. A schedule that ends in 0 adds one
evaluation, from that level to x0, as in every other solver; one without 0 stops there, as k-diffusion does. A schedule
that increases encodes instead: from the data up to its noise, along the ODE.
"""

import math

import torch
from torch import Tensor

from pixelspace.errors import NumericalError
from pixelspace.sampling.denoiser import Denoise
from pixelspace.sampling.step import (
    Callback,
    Counts,
    Level,
    Noise,
    Step,
    check,
    checked_noise,
    column,
    schedule,
)


def _ends(sigmas: Tensor, solver: str, eta: float) -> tuple[float, float, bool]:
    """(first level, last positive level, whether 0 follows) of a schedule that may also increase."""
    encodes = sigmas.ndim == 1 and len(sigmas) > 1 and bool(sigmas[0] < sigmas[-1])
    levels = schedule(sigmas.flip(0))[::-1] if encodes else schedule(sigmas)
    check(
        solver,
        sigmas=(levels[0] == 0, "positive where they begin", levels),
        eta=(eta < 0 or (encodes and eta > 0), "0 to encode, else 0 or more", eta),
    )
    return levels[0], levels[-1] or levels[-2], levels[-1] == 0


def _split(t: Tensor, t_next: Tensor, t_end: float, eta: float) -> tuple[Tensor, Tensor]:
    """(t_down, sigma_up), (B,) each: the ancestral split of a step from t to t_next, going no further than t_end."""
    if eta == 0:
        return t_next, torch.zeros_like(t)
    up = (eta * (-torch.expm1(2 * (t - t_next))).sqrt()).clamp(max=1)  # as a share of sigma_next
    t_down = (t_next - torch.log1p(-up * up) / 2).clamp(max=t_end)
    return t_down, ((-2 * t_next).exp() - (-2 * t_down).exp()).sqrt()


def _eps(denoise: Denoise, x: Tensor, t: Tensor) -> Tensor:
    sigma = column((-t).exp(), x)
    return (x - denoise(x, sigma)) / sigma


def _first(x: Tensor, eps: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """DPM-Solver-1, which is DDIM (Lu et al. 2022)."""
    return x - eps * column((-t_next).exp() * torch.expm1(t_next - t), x)


def _inner(denoise: Denoise, x: Tensor, eps: Tensor, t: Tensor, t_next: Tensor, r1: float) -> Tensor:
    """eps at the share r1 of a step."""
    s1 = t + r1 * (t_next - t)
    return _eps(denoise, _first(x, eps, t, s1), s1)


def _second(x: Tensor, eps: Tensor, eps_1: Tensor, t: Tensor, t_next: Tensor, r1: float) -> Tensor:
    """DPM-Solver-2, `eps_1` being at the share r1 of the step."""
    return _first(x, eps + (eps_1 - eps) / (2 * r1), t, t_next)


def _bend(h: Tensor) -> Tensor:
    return torch.where(h == 0, 0.0, torch.expm1(h) / h - 1)  # 0 for an image that stays where it is


def _third(denoise: Denoise, x: Tensor, eps: Tensor, eps_1: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """DPM-Solver-3 with r1 = 1/3 and r2 = 2/3, `eps_1` being at the share r1 of the step."""
    r1, r2, h = 1 / 3, 2 / 3, t_next - t
    s2 = t + r2 * h
    inner = _first(x, eps, t, s2) - (eps_1 - eps) * column((-s2).exp() * (r2 / r1) * _bend(r2 * h), x)
    eps_2 = _eps(denoise, inner, s2)
    return _first(x, eps, t, t_next) - (eps_2 - eps) * column((-t_next).exp() / r2 * _bend(h), x)


def dpm_fast(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    n: int | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver with steps of order 3 and lower last ones that spend just `n` evaluations (Lu et al. 2022).

    Of `sigmas` only the ends matter. `n` defaults to len(sigmas) - 1, what Euler would spend; a final 0 takes one of
    them.
    """
    start, end, to_zero = _ends(sigmas, "dpm_fast", eta)
    total = len(sigmas) - 1 if n is None else n
    check("dpm_fast", n=(total < 1, "at least 1", n))
    z = checked_noise(noise, x, "dpm_fast", needed=eta > 0)
    budget = total - to_zero if start != end else 0
    orders = [3] * (budget // 3 - 1) + [2, 1] if budget % 3 == 0 else [3] * (budget // 3) + [budget % 3]
    if budget == 0:
        orders, end = [], start
    t_end = -math.log(end)
    times = torch.linspace(-math.log(start), t_end, len(orders) + 1, dtype=torch.float64).tolist()
    for i, order in enumerate(orders):
        t, t_next = (torch.full((len(x),), time, dtype=torch.float64) for time in times[i : i + 2])
        sigma, sigma_next = math.exp(-times[i]), math.exp(-times[i + 1])
        t_down, up = _split(t, t_next, t_end, eta)
        eps = _eps(denoise, x, t)
        if callback is not None:
            callback(Step(i, x, sigma, sigma, x - eps * sigma))
        if order == 1:
            x = _first(x, eps, t, t_down)
        elif order == 2:
            x = _second(x, eps, _inner(denoise, x, eps, t, t_down, 1 / 2), t, t_down, 1 / 2)
        else:
            x = _third(denoise, x, eps, _inner(denoise, x, eps, t, t_down, 1 / 3), t, t_down)
        x = x + z(sigma, sigma_next) * column(up * s_noise, x)
    if to_zero:
        x = denoise(x, column(end, x))
        if callback is not None:
            callback(Step(len(orders), x, end, end, x))
    return x


class _Controller:
    """Step sizes (B,) in t by a PID controller on the error of each image."""

    def __init__(self, h: Tensor, order: float, gains: tuple[float, float, float], accept_safety: float) -> None:
        p, i, d = (gain / order for gain in gains)
        self.h, self.powers, self.accept_safety = h, (p + i + d, -(p + 2 * d), d), accept_safety
        self.history: tuple[Tensor, Tensor] | None = None

    def accepts(self, error: Tensor, active: Tensor) -> Tensor:
        """Which `active` images keep their step, given its error in units of the tolerance; sets `h` for the next."""
        now = 1 / (error + 1e-8)
        one, two = self.history or (now, now)
        b1, b2, b3 = self.powers
        factor = 1 + torch.atan(now**b1 * one**b2 * two**b3 - 1)
        accept = active & (factor >= self.accept_safety)
        self.h = torch.where(active, self.h * factor, self.h)
        self.history = torch.where(accept, now, one), torch.where(accept, one, two)
        return accept


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    per_image: bool = True,
) -> Tensor:
    """DPM-Solver-12 or -23 with steps chosen by their error (Lu et al. 2022; PID control is k-diffusion's).

    Of `sigmas` only the ends matter. Each image has its own steps, so that none depends on the rest of the batch; noise
    is then called with (B,) float64 CPU sigmas, equal where an image doesn't move. With `per_image` False the batch
    shares its steps, as in k-diffusion, and noise gets floats. The callback sees x after each attempt, at the sigma
    reached, with the `counts` so far; h_init is a step in ln sigma.

    Raises:
        NumericalError: `denoise` gave values that aren't finite, or no step is small enough for the tolerances.
    """
    start, end, to_zero = _ends(sigmas, "dpm_adaptive", eta)
    check(
        "dpm_adaptive",
        order=(order not in (2, 3), "2 or 3", order),
        rtol=(rtol < 0, "0 or more", rtol),
        atol=(atol <= 0, "positive", atol),
        h_init=(h_init <= 0, "positive", h_init),
        accept_safety=(not 0 < accept_safety < 1, "between 0 and 1", accept_safety),
    )
    z = checked_noise(noise, x, "dpm_adaptive", needed=eta > 0)
    t_end, sign = -math.log(end), 1 if end <= start else -1
    t = torch.full((len(x),), -math.log(start), dtype=torch.float64)
    gains = (pcoeff, icoeff, dcoeff)
    control = _Controller(torch.full_like(t, sign * h_init), 1.5 if eta else order, gains, accept_safety)
    counts = Counts(*(torch.zeros(len(x), dtype=torch.int64) for _ in Counts._fields))
    attempts, previous = 0, x

    def level(t: Tensor) -> Level:
        return (-t).exp() if per_image else math.exp(-float(t[0]))

    while bool((active := sign * (t_end - t) > 1e-5).any()):
        goal = sign * (sign * (t + control.h)).clamp(max=sign * t_end)
        t_next = torch.where(active, goal, t)
        t_down, up = _split(t, t_next, t_end, eta)
        eps = _eps(denoise, x, t)
        denoised = x - eps * column((-t).exp(), x)
        r1 = 1 / order
        eps_1 = _inner(denoise, x, eps, t, t_down, r1)
        low, high = _first(x, eps, t, t_down), _second(x, eps, eps_1, t, t_down, r1)
        if order == 3:
            low, high = high, _third(denoise, x, eps, eps_1, t, t_down)
        tolerance = (torch.maximum(low.abs(), previous.abs()) * rtol).clamp(min=atol)
        square = ((low - high) / tolerance).detach().square().flatten(1).mean(1).cpu().double()
        error = (square if per_image else square.mean().expand(len(x))).sqrt()
        if not bool(error.isfinite().all()):
            raise NumericalError(f"dpm_adaptive: the denoiser's values near sigma {level(t)} are not finite")
        accept = control.accepts(error, active)
        if bool((active & (t + control.h == t)).any()):
            raise NumericalError(f"dpm_adaptive: no step meets rtol {rtol} and atol {atol} near sigma {level(t)}")
        if bool(accept.any()):
            t_new = torch.where(accept, t_next, t)
            moved = high + z(level(t), level(t_new)) * column(up * s_noise, x)
            taken = column(accept, x).bool()
            x, previous, t = torch.where(taken, moved, x), torch.where(taken, low, previous), t_new
        spent = Counts(active, active * order, accept, active & ~accept)
        counts = Counts(*(total + more for total, more in zip(counts, spent, strict=True)))
        if callback is not None:
            callback(Step(attempts, x, level(t), level(t), denoised, counts))
        attempts += 1
    if to_zero:
        x = denoise(x, column(end, x))
        if callback is not None:
            callback(Step(attempts, x, end, end, x, counts._replace(steps=counts.steps + 1, nfe=counts.nfe + 1)))
    return x
