"""Every solver against k-diffusion's own runs on a Gaussian mixture, in float64."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixelspace.sampling.solvers import SOLVERS
from pixelspace.sampling.step import Step

DESCRIPTION = json.loads((Path(__file__).parents[1] / "goldens/hdit/samplers.json").read_text())
RUNS = {run["name"]: run for run in DESCRIPTION["runs"] if run["function"].startswith("sample_")}
ENDS = torch.tensor([20.0, 0.02], dtype=torch.float64)


class Recorded:
    """The recorded noise in its order, and what each call asked for."""

    def __init__(self, sequence: Tensor) -> None:
        self.sequence, self.calls = sequence, []

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        self.calls.append((sigma, sigma_next))
        return self.sequence[len(self.calls) - 1]


def test_the_closed_form_denoiser_is_that_of_the_goldens(golden, mixture):
    probe = golden("hdit/samplers")
    found = mixture(probe["denoiser_probe/x"], probe["denoiser_probe/sigma"].reshape(-1, 1, 1, 1))
    torch.testing.assert_close(found, probe["denoiser_probe/denoised"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", RUNS)
def test_a_solver_reproduces_the_run_of_k_diffusion(name, golden, mixture):
    run, tensors = RUNS[name], golden("hdit/samplers")
    solver, kwargs = run["function"].removeprefix("sample_"), dict(run["kwargs"])
    kwargs.pop("return_info", None)
    adaptive = solver in ("dpm_fast", "dpm_adaptive")
    if solver == "dpm_fast":
        kwargs["n"] = int(name.removeprefix("dpm_fast_n").split("_")[0])
    if solver == "dpm_adaptive":
        kwargs["per_image"] = False
    sigmas = ENDS if adaptive else tensors[f"sigmas/{run['schedule']}"]
    start = tensors["x_init/" + (run["schedule"] or "karras10")]
    evaluations, steps, noise = [], list[Step](), Recorded(tensors["noise_sequence"])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (3, 1, 1, 1) and sigma.dtype == x.dtype
        evaluations.append(sigma)
        return mixture(x, sigma)

    final = SOLVERS[solver].function(denoise, start, sigmas, noise=noise, callback=steps.append, **kwargs)

    torch.testing.assert_close(final, tensors[f"run/{name}/final"], rtol=0, atol=1e-10)
    # relative, because x is up to 60 on its way, and adaptive steps magnify rounding
    on_the_way = torch.stack([step.x for step in steps])
    torch.testing.assert_close(on_the_way, tensors[f"run/{name}/x_at_callback"], rtol=1e-11, atol=1e-10)
    assert [s.sigma for s in steps] == pytest.approx(run["callback_sigma"], rel=1e-10)
    assert [s.sigma_hat for s in steps] == pytest.approx(run["callback_sigma_hat"], rel=1e-10)
    assert [s.index for s in steps] == list(range(len(steps)))
    assert len(evaluations) == run["nfe"]
    if run["randn_like_calls"] is not None:
        assert len(noise.calls) == run["randn_like_calls"]
    elif run["noise_sampler_calls"] is not None:
        assert [sigma for call in noise.calls for sigma in call] == pytest.approx(
            [sigma for call in run["noise_sampler_calls"] for sigma in call], rel=1e-10
        )
    else:
        assert noise.calls == []
    if run["info"] is not None:
        counts = steps[-1].counts
        assert counts is not None
        assert {key: [value] * 3 for key, value in run["info"].items()} == {
            key: value.tolist() for key, value in counts._asdict().items()
        }
