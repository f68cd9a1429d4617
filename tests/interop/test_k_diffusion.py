import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixelspace as ps
from pixelspace.errors import CheckpointError, UserError
from pixelspace.interop.k_diffusion import read_config, read_levels
from tests.conftest import GOLDENS

CASE = "nbhd_class_2lvl"
WEIGHTS = GOLDENS / f"hdit/{CASE}.weights.safetensors"


@pytest.fixture
def described(golden_json):
    return golden_json(f"hdit/{CASE}")["config"]


def outputs(model, golden):
    stored = golden(f"hdit/{CASE}.io")
    x, sigma, label = (stored[f"16x24/in/{key}"] for key in ("x", "sigma", "class_cond"))
    model.backbone.double()
    return model.denoised(x.double(), sigma.double(), {"label": label}), stored["16x24/out64/denoised"]


def test_an_inference_file_gives_the_same_numbers(golden):
    torch.testing.assert_close(*outputs(ps.import_checkpoint(WEIGHTS), golden), rtol=0, atol=1e-10)


def test_a_training_checkpoint_gives_its_average(golden, described, tmp_path):
    path, weights = tmp_path / "model_00001000.pth", load_file(WEIGHTS)
    raw = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    more = {"opt": {"state": {}, "param_groups": []}, "step": 1000, "elapsed": 1.5, "ema_stats": {}}
    torch.save({"config": described, "model": raw, "model_ema": weights, **more}, path)
    torch.testing.assert_close(*outputs(ps.import_checkpoint(path), golden), rtol=0, atol=1e-10)


def test_a_state_dict_comes_in_with_a_config_given(golden, described, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(described))
    for config in (described, path):
        model = ps.import_checkpoint(load_file(WEIGHTS), config=config)
        torch.testing.assert_close(*outputs(model, golden), rtol=0, atol=1e-10)


def test_half_precision_files_become_float32(golden, described, tmp_path):
    path = tmp_path / "half.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(WEIGHTS).items()}
    save_file(half, path, metadata={"config": json.dumps(described)})
    found, expected = outputs(ps.import_checkpoint(path), golden)
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_an_imported_model_saves_loads_and_samples(golden, tmp_path):
    model = ps.import_checkpoint(WEIGHTS)
    again = ps.load(model.save(tmp_path / "model"))
    images = again.sample(2, label=3, steps=3, progress=False)
    assert images.shape == (2, 16, 16, 3) and images.dtype == torch.uint8
    assert torch.equal(images, model.sample(2, label=3, steps=3, progress=False))
    torch.testing.assert_close(*outputs(again, golden), rtol=0, atol=1e-10)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_runs_nothing(tmp_path, protocol):
    canary = tmp_path / "canary"
    for path in (tmp_path / "a.pth", tmp_path / "b.pt"):
        if path.suffix == ".pth":
            torch.save({"model_ema": Malice(canary)}, path, pickle_protocol=max(protocol, 2))
        else:
            path.write_bytes(pickle.dumps({"model": Malice(canary)}, protocol))
        with pytest.raises(CheckpointError, match=rf"{path.name}: (holds more than tensors|not readable)"):
            ps.import_checkpoint(path)
        assert not canary.exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "empty.pth", "text.pth"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    if name == "cut.safetensors":
        path.write_bytes(WEIGHTS.read_bytes()[:1000])
    elif name == "cut.pth":
        torch.save({"model": load_file(WEIGHTS)}, path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes(b"" if name == "empty.pth" else b"hello")
    with pytest.raises(CheckpointError, match=name):
        ps.import_checkpoint(path)


def test_weights_of_another_architecture_are_refused_by_name(described):
    weights = load_file(WEIGHTS)
    with pytest.raises(CheckpointError, match=r"another architecture: 1 missing \['out_norm.scale'\]"):
        ps.import_checkpoint({n: t for n, t in weights.items() if n != "out_norm.scale"}, config=described)
    with pytest.raises(CheckpointError, match=r"out_norm.scale has shape \(3,\), expected \(32,\)"):
        ps.import_checkpoint({**weights, "out_norm.scale": torch.zeros(3)}, config=described)
    with pytest.raises(CheckpointError, match=r"out_norm.scale holds values that are not finite"):
        ps.import_checkpoint({**weights, "out_norm.scale": torch.full((32,), torch.nan)}, config=described)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "image_v1"}, "expected 'image_transformer_v2'"),
        ({"mapping_widht": 3}, "no such setting; did you mean 'mapping_width'"),
        ({"has_variance": True}, "has_variance"),
        ({"depths": [1]}, "one entry a level"),
        ({"self_attns": [{"type": "local"}, {"type": "global"}]}, "no such type 'local'"),
        ({"loss_weighting": "soft"}, "loss_weighting"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(described, change, message):
    with pytest.raises(UserError, match=message):
        read_config({**described, "model": {**described["model"], **change}})


def test_a_checkpoint_without_configuration_asks_for_one():
    with pytest.raises(UserError, match="carries no configuration"):
        ps.import_checkpoint(load_file(WEIGHTS))
    with pytest.raises(UserError, match="no such system 'ml-mda'; did you mean 'ml-mdm'"):
        ps.import_checkpoint(WEIGHTS, system="ml-mda")
    with pytest.raises(CheckpointError, match="no such file"):
        ps.import_checkpoint("nowhere.pth")


def test_densities_read_from_their_configurations_meet_the_golden(golden, golden_json):
    stored = golden("hdit/densities")
    u = stored["u"]
    compared = 0
    for case in golden_json("hdit/densities")["cases"]:
        if "model_config" not in case or case["name"] == "split-lognormal":
            continue
        levels = read_levels(case["model_config"])
        at = 1 - u if case["name"].startswith("cosine-interpolated") else u
        inside = (u > 0) & (u < 1)
        expected = stored[f"{case['name']}/f64"]
        torch.testing.assert_close(levels(at)[inside], expected[inside], rtol=1e-6, atol=0)
        compared += 1
    assert compared >= 14
