"""What holds of every solver: orders of convergence, identities, dtypes, short schedules, errors."""

import math

import pytest
import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.noise.levels import Karras, grid
from pixelspace.random import Rng
from pixelspace.sampling.brownian import independent
from pixelspace.sampling.solvers import SOLVERS, _adams_bashforth, settings_of

DATA_STD = 0.5
FIXED = [name for name in SOLVERS if name != "dpm_adaptive"]
NOISE_BY_DEFAULT = [name for name in SOLVERS if settings_of(name).get("eta")]


def ode(name: str) -> dict:
    """The settings at which a solver follows the ODE."""
    return {"eta": 0.0} if "eta" in settings_of(name) else {}


def levels(high: float, low: float, steps: int) -> Tensor:
    """Steps in ln sigma that begin far shorter, so that the low-order starts of multistep methods don't count."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2
    return (math.log(high) + u * math.log(low / high)).exp()


def exact(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return x * math.sqrt((DATA_STD**2 + sigma_next**2) / (DATA_STD**2 + sigma**2))


@pytest.mark.parametrize("name", FIXED)
def test_the_error_falls_with_the_order_of_the_table(name, gaussian):
    x, errors = torch.ones(1, 1, dtype=torch.float64), []
    for steps in (128, 256):
        # 3 k + 2 evaluations: dpm_fast's last step is then of order 2, whose one local error is of order 3
        settings = {"n": 3 * steps + 2} if name == "dpm_fast" else {}
        end = SOLVERS[name].function(gaussian, x, levels(3.0, 0.1, steps), **ode(name), **settings)
        errors.append(float((end - exact(x, 3.0, 0.1)).abs()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(SOLVERS[name].order, abs=0.05)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_order_of_lms_is_its_setting(order, gaussian):
    x, errors = torch.ones(1, 1, dtype=torch.float64), []
    for steps in (128, 256):
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 3
        sigmas = (math.log(3.0) + u * math.log(0.1 / 3.0)).exp()
        end = SOLVERS["lms"].function(gaussian, x, sigmas, order=order)
        errors.append(float((end - exact(x, 3.0, 0.1)).abs()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_adams_bashforth_on_even_nodes_has_the_textbook_weights():
    weights = [24 * w for w in _adams_bashforth([0.0, -1.0, -2.0, -3.0], 1.0)]
    assert weights == pytest.approx([55, -59, 37, -9], rel=1e-13)


def test_one_euler_step_is_ddim():
    g = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=g)
    sigma, sigma_next = 3.0, 0.7
    alpha, alpha_next = (1 / math.sqrt(1 + s**2) for s in (sigma, sigma_next))
    x0 = x - sigma * eps
    end = SOLVERS["euler"].function(lambda x, sigma: x0, x, torch.tensor([sigma, sigma_next], dtype=torch.float64))
    ddim = alpha_next * x0 + math.sqrt(1 - alpha_next**2) * eps  # Song et al. 2021, Eq. 12
    torch.testing.assert_close(alpha_next * end, ddim)
    torch.testing.assert_close(alpha * x, alpha * x0 + math.sqrt(1 - alpha**2) * eps)


def test_an_ancestral_euler_step_is_ddpm():
    """Its mean and variance are those of q(x_s | x_t, x0) (Ho et al. 2020, Eq. 7), in the variance-preserving scale."""
    sigma, sigma_next = 3.0, 0.7
    bar, bar_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    step = bar / bar_next
    x, x0 = torch.tensor([[1.3]], dtype=torch.float64), torch.tensor([[0.4]], dtype=torch.float64)
    ends = [
        SOLVERS["euler_ancestral"].function(
            lambda x, sigma: x0,
            x,
            torch.tensor([sigma, sigma_next], dtype=torch.float64),
            noise=lambda a, b, z=z: x * z,
        )
        for z in (0.0, 1.0)
    ]
    mean, std = ends[0] * math.sqrt(bar_next), (ends[1] - ends[0]) / x * math.sqrt(bar_next)
    x_t = x * math.sqrt(bar)
    from_x0 = math.sqrt(bar_next) * (1 - step) / (1 - bar)
    from_x_t = math.sqrt(step) * (1 - bar_next) / (1 - bar)
    torch.testing.assert_close(mean, from_x0 * x0 + from_x_t * x_t)
    torch.testing.assert_close(std**2, torch.full_like(std, (1 - bar_next) / (1 - bar) * (1 - step)))


@pytest.mark.parametrize("name", [name for name in NOISE_BY_DEFAULT if name != "dpm_fast"])
def test_a_stochastic_solver_keeps_the_variance_of_gaussian_data(name, gaussian):
    images = torch.arange(4)
    sigmas = grid(Karras(0.02, 20.0), 100)
    x = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(1)) * math.sqrt(400 + DATA_STD**2)
    end = SOLVERS[name].function(gaussian, x, sigmas, noise=independent(Rng(0), images, (50_000,)))
    # a tenth for the steps' own error; that of the estimate is 0.002
    assert float(end.std()) == pytest.approx(DATA_STD, rel=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_packed_state_is_solved_elementwise(name, gaussian):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=g) * 10
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=g)
    sigmas = grid(Karras(0.02, 10.0), 12)
    solve = SOLVERS[name].function
    image = solve(gaussian, x, sigmas, noise=lambda a, b: z)
    packed = solve(gaussian, x.flatten(1), sigmas, noise=lambda a, b: z.flatten(1))
    torch.testing.assert_close(packed, image.flatten(1))
    if name != "dpm_adaptive":  # its steps depend on all of an image
        part = solve(gaussian, x.flatten(1)[:, :7], sigmas, noise=lambda a, b: z.flatten(1)[:, :7])
        torch.testing.assert_close(part, packed[:, :7])


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_stays_float32_and_agrees_with_float64(name, gaussian):
    g = torch.Generator().manual_seed(3)
    x, z = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64, generator=g)
    sigmas = grid(Karras(0.02, 20.0), 12)
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x.dtype, sigma.dtype))
        return gaussian(x, sigma)

    solve = SOLVERS[name].function
    wide = solve(gaussian, 20 * x, sigmas, noise=lambda a, b: z)
    narrow = solve(denoise, (20 * x).float(), sigmas.float(), noise=lambda a, b: z)
    assert narrow.dtype == torch.float32 and set(seen) == {(torch.float32, torch.float32)}
    # rounding where x is some 60 is 4e-6, and shrinks with sigma; the float32 schedule moves by 6e-8. Rounding also
    # changes the error that sets adaptive steps, whose result then moves within their tolerance
    rtol = 2e-3 if name == "dpm_adaptive" else 1e-4
    torch.testing.assert_close(narrow.double(), wide, rtol=rtol, atol=2e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_to_zero_is_the_denoised_image(name, gaussian):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    sigmas, steps = torch.tensor([5.0, 0.0], dtype=torch.float64), []
    end = SOLVERS[name].function(gaussian, x, sigmas, noise=lambda a, b: x, callback=steps.append)
    torch.testing.assert_close(end, gaussian(x, torch.tensor(5.0, dtype=torch.float64)), rtol=1e-12, atol=0)
    assert len(steps) == 1


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_above_zero_runs(name, gaussian):
    x = torch.ones(2, 3, dtype=torch.float64)
    sigmas = torch.tensor([1.0, 0.9], dtype=torch.float64)
    end = SOLVERS[name].function(gaussian, x, sigmas, **ode(name))
    torch.testing.assert_close(end, exact(x, 1.0, 0.9), rtol=5e-3, atol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_callback_is_told_of_every_step(name, gaussian):
    x, sigmas, steps = torch.ones(2, 3, dtype=torch.float64), grid(Karras(0.02, 20.0), 6), []
    SOLVERS[name].function(gaussian, x, sigmas, callback=steps.append, **ode(name))
    assert [step.index for step in steps] == list(range(len(steps)))
    if name not in ("dpm_fast", "dpm_adaptive"):
        assert [step.sigma for step in steps] == sigmas[:-1].tolist()


@pytest.mark.parametrize("name", NOISE_BY_DEFAULT)
def test_missing_noise_is_an_error(name, gaussian):
    with pytest.raises(UserError, match=f"^{name} draws noise at these settings; pass noise="):
        SOLVERS[name].function(gaussian, torch.ones(1, 1), torch.tensor([2.0, 1.0, 0.0]))


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn_without_noise_is_an_error(name, gaussian):
    with pytest.raises(UserError, match="draws noise"):
        SOLVERS[name].function(gaussian, torch.ones(1, 1), torch.tensor([2.0, 1.0, 0.0]), s_churn=1.0)


def test_noise_that_would_broadcast_is_an_error(gaussian):
    with pytest.raises(UserError, match=r"noise must have x's shape \(2, 3\), found \(1, 3\)"):
        SOLVERS["euler"].function(
            gaussian, torch.ones(2, 3), torch.tensor([2.0, 0.0]), noise=lambda a, b: torch.ones(1, 3)
        )


@pytest.mark.parametrize(
    "sigmas", [[1.0], [[2.0, 1.0]], [1.0, 2.0], [2.0, 1.0, 1.0], [1.0, -1.0], [float("nan"), 0.0], [float("inf"), 1.0]]
)
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_a_schedule_that_cannot_be_meant_is_an_error(name, sigmas, gaussian):
    with pytest.raises(UserError, match=r"^sigmas: expected"):
        SOLVERS[name].function(gaussian, torch.ones(1, 1), torch.tensor(sigmas))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("euler", {"s_churn": -1.0}),
        ("euler_ancestral", {"eta": -0.1}),
        ("lms", {"order": 0}),
        ("dpmpp_sde", {"r": 0.0}),
        ("dpmpp_2m_sde", {"solver_type": "huen"}),
        ("dpm_fast", {"n": 0}),
        ("dpm_adaptive", {"order": 4}),
        ("dpm_adaptive", {"atol": 0.0}),
        ("dpm_adaptive", {"h_init": 0.0}),
        ("dpm_adaptive", {"accept_safety": 1.5}),
    ],
)
def test_a_setting_that_cannot_be_meant_is_an_error_that_names_it(name, settings, gaussian):
    with pytest.raises(UserError, match=f"^{name}: {next(iter(settings))} must be "):
        SOLVERS[name].function(gaussian, torch.ones(1, 1), torch.tensor([2.0, 1.0, 0.0]), **settings)


def test_settings_come_from_the_signature_and_are_checked():
    assert settings_of("lms") == {"order": 4}
    assert settings_of("dpmpp_2m") == {}
    assert settings_of("heun", {"s_churn": 40}) == {"s_churn": 40, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
    with pytest.raises(UserError, match="no solver 'huen'; did you mean 'heun'"):
        settings_of("huen")
    with pytest.raises(UserError, match="heun has no setting 's_chrun'; did you mean 's_churn'"):
        settings_of("heun", {"s_chrun": 1.0})
    with pytest.raises(UserError, match=r"lms: order must be of type int, found 4\.0"):
        settings_of("lms", {"order": 4.0})
    with pytest.raises(UserError, match="lms: order must be of type int, found True"):
        settings_of("lms", {"order": True})
