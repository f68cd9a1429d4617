import pytest
import torch

from pixelspace.errors import UserError
from pixelspace.noise.levels import grid
from pixelspace.noise.tables import LimitedCosine, LinearBeta, SquaredCosine, shifted, vdm_weights

KINDS = {"DEEPFLOYD": SquaredCosine, "COSINE": LimitedCosine, "DDPM": LinearBeta}
TABLES = [SquaredCosine(), SquaredCosine(8), LimitedCosine(250), LinearBeta(32), SquaredCosine(100, rescale=4.0)]


def cases(golden_json):
    for name, entry in golden_json("mdm/schedules")["entries"].items():
        config = entry["sampler_config"]
        betas = {name: config[name] for name in ("beta_start", "beta_end")} if config["schedule_type"] == "DDPM" else {}
        steps, rescale = config["num_diffusion_steps"], config["rescale_schedule"]
        yield name, entry, KINDS[config["schedule_type"]](steps, rescale=rescale, **betas)


def test_the_tables_are_the_originals_bit_for_bit(golden, golden_json):
    stored = golden("mdm/schedules")
    for name, entry, table in cases(golden_json):
        assert torch.equal(table.signal().float(), stored[f"{name}.gammas_raw"]), name
        assert torch.equal(table.gammas, stored[f"{name}.gammas"]), name
        for scale in entry["scales"] or ():
            ratio = scale ** entry["sampler_config"]["schedule_shifted_power"]
            assert torch.equal(shifted(table.gammas, ratio), stored[f"{name}.gammas_scale{scale}"]), (name, scale)


def test_the_weights_of_the_bound_are_the_originals_bit_for_bit(golden, golden_json):
    stored = golden("mdm/schedules")
    for name, _, table in cases(golden_json):
        assert torch.equal(vdm_weights(table.gammas), stored[f"{name}.vdm_loss_weights"]), name


def test_sampling_visits_the_entries_that_the_original_visits(golden):
    stored = {name: entries for name, entries in golden("mdm/schedules").items() if name.startswith("timesteps.")}
    assert len(stored) >= 13
    for name, expected in stored.items():
        n, k = (int(part[1:]) for part in name.removeprefix("timesteps.").split("_"))
        table = SquaredCosine(n)
        assert torch.equal(table.entries(k), expected), name
        assert torch.equal(grid(table, k), table.sigmas[expected]), name


def test_sigma_of_an_entry_is_noise_over_signal_and_a_shift_multiplies_it():
    table = SquaredCosine()
    alpha, sigma_vp = table.gammas.double().sqrt(), (1 - table.gammas.double()).sqrt()
    torch.testing.assert_close(table.sigmas, sigma_vp / alpha)
    rescaled = SquaredCosine(rescale=9.0)
    torch.testing.assert_close(rescaled.sigmas, 3 * table.sigmas, rtol=1e-3, atol=0)  # float32 near gamma = 1


@pytest.mark.parametrize("table", TABLES, ids=repr)
def test_each_entry_but_the_clean_one_is_as_likely(table):
    u = (torch.arange(20 * table.steps, dtype=torch.float64) + 0.5) / (20 * table.steps)
    sigma = table(u)
    assert (sigma.diff() >= 0).all() and sigma.dtype == torch.float64
    found, counts = sigma.unique(return_counts=True)
    assert torch.equal(found, table.sigmas[1:]) and (counts == 20).all()
    ends = table(torch.tensor([0.0, 1.0]))
    assert torch.equal(ends, table.sigmas[[1, -1]].float())


def test_more_steps_than_a_table_has_are_refused():
    assert len(grid(SquaredCosine(8), 8)) == 9
    with pytest.raises(UserError, match="SquaredCosine's, which has 8; ask for as many or fewer"):
        grid(SquaredCosine(8), 9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SquaredCosine(1),
        lambda: LimitedCosine(rescale=0.0),
        lambda: LinearBeta(beta_start=0.1, beta_end=0.01),
        lambda: LinearBeta(1),
    ],
)
def test_senseless_tables_are_refused(make):
    with pytest.raises(ValueError):
        make()
