"""ml-mdm's files and configurations; the networks themselves are held against its outputs in tests/backbones."""

import argparse
import copy
import enum
import pickle
import sys
import types
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pixelspace as ps
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetText
from pixelspace.errors import CheckpointError, UserError
from pixelspace.interop.ml_mdm import read_config, read_model, released

CASE = "nested2_text"


@pytest.fixture
def stored(golden):
    return golden(f"mdm/{CASE}")


@pytest.fixture
def weights(stored):
    return {name.removeprefix("sd."): tensor for name, tensor in stored.items() if name.startswith("sd.")}


@pytest.fixture
def config(golden_json):
    return golden_json(f"mdm/{CASE}")["config"]


def imported(source, config=None, **given):
    return ps.import_checkpoint(source, system="ml-mdm", config=config, device="cpu", **given)


def assert_meets_the_golden(model, stored):
    cond = {"text": stored["in.lm"], "text_mask": stored["in.mask"]}
    outs = model.backbone([stored["in.x0"], stored["in.x1"]], stored["in.times"], cond)
    for level, out in enumerate(outs):
        torch.testing.assert_close(out, stored[f"out.p{level}"], rtol=0, atol=1e-5)


def changed(config: dict, path: str, new: Any) -> dict:
    config = copy.deepcopy(config)
    *parents, key = path.split(".")
    inside = config
    for parent in parents:
        inside = inside[parent]
    inside[key] = new
    return config


def test_a_state_dict_gives_the_same_numbers(stored, weights, config, golden_json):
    model = imported(weights, config)
    assert_meets_the_golden(model, stored)
    assert model.config.size == (32, 32) and model.config.backbone.pyramid == (1, 4)
    assert_meets_the_golden(imported(weights, golden_json(f"mdm/{CASE}")), stored)


def test_a_saved_import_is_the_same_network(stored, weights, config, tmp_path):
    again = ps.load(imported(weights, config).save(tmp_path / "model"), device="cpu")
    assert_meets_the_golden(again, stored)


def test_numbers_may_stand_in_lists_or_strings_and_one_for_all(stored, weights, config):
    written = copy.deepcopy(config)
    written.update(num_resnets_per_resolution="1, 2,1", attention_levels="", num_attention_layers="0")
    written["inner_config"].update(num_resnets_per_resolution="1", resolution_channels="8,32", attention_levels="1")
    assert read_config(written) == read_config(config)
    assert_meets_the_golden(imported(weights, written), stored)


def test_the_width_of_the_text_is_told_by_the_weights_where_the_configuration_leaves_it_open(stored, weights, config):
    assert_meets_the_golden(imported(weights, changed(config, "conditioning_feature_dim", -1)), stored)
    without = {name: tensor for name, tensor in weights.items() if "lm_proj" not in name and "cond_emb" not in name}
    assert read_model(without, changed(config, "conditioning_feature_dim", -1)).backbone.text_widths is None


def test_what_upstream_made_and_never_used_is_left_out(stored, weights, config):
    extra = {f"interp_layer{i}.{part}": torch.zeros(3) for i in (1, 2) for part in ("weight", "bias")}
    assert_meets_the_golden(imported({**weights, **extra}, changed(config, "interp_conditioning", True)), stored)


def test_a_network_without_cond_emb_reads_text_by_attention_alone(golden_json):
    config = changed(golden_json("mdm/unet_text")["config"], "skip_cond_emb", True)
    with pytest.raises(UserError, match="proj and depth belong to the pooled text"):
        read_config(config)
    text = read_config(changed(config, "conditioning_feature_proj_dim", -1)).text
    assert text == UNetText(24, pooled=False)


# The released networks as their configurations have them.
UNET64 = {
    "num_resnets_per_resolution": "2,2,2",
    "attention_levels": "1,2",
    "num_attention_layers": "0,1,5",
    "conditioning_feature_dim": -1,
    "conditioning_feature_proj_dim": 2048,
    "num_lm_head_layers": 0,
    "masked_cross_attention": 0,
    "resolution_channels": "256,512,768",
    "temporal_dim": 1024,
    "skip_mid_blocks": False,
    "micro_conditioning": "scale:64",
    "resnet_config": {"num_channels": -1, "use_attention_ffn": True},
}


def outer(inner, channels, scale, **more):
    return {
        "num_resnets_per_resolution": "2,2,1",
        "attention_levels": "",
        "num_attention_layers": "0",
        "resolution_channels": channels,
        "temporal_dim": 1024,
        "conditioning_feature_dim": -1,
        "micro_conditioning": f"scale:{scale}",
        "inner_config": {**inner, "nesting": True},
        "initialize_inner_with_pretrained": "None",
        **more,
    }


UNET256 = outer(UNET64, "64,128,256", 256, skip_normalization=True)
UNET1024 = outer(outer(UNET64, "64,128,256", 256), "32,32,64", 1024, skip_normalization=True)


@pytest.mark.parametrize(("size", "config"), [(64, UNET64), (256, UNET256), (1024, UNET1024)])
def test_released_networks_come_of_their_configurations_and_of_their_weights_names(size, config, golden_json):
    assert read_config(config, 2048) == released(size)
    with torch.device("meta"):
        weights = released(size).build().state_dict()
    read = read_model(weights)
    assert read.backbone == released(size) and read.size == (size, size)


@dataclass
class Resnet:
    num_groups_norm: int = 4
    use_attention_ffn: bool = False


class Schedule(enum.Enum):
    DEEPFLOYD = "DEEPFLOYD"


@pytest.fixture
def published(weights, config, tmp_path, monkeypatch):
    """A file in the published layout: settings as objects of classes that no reader has."""

    def described(given: dict):
        fields = [(name, Any, field(default=None)) for name in given]
        cls = make_dataclass(f"Config{'Outer' if 'inner_config' in given else 'Inner'}", fields)
        module(cls, "models.unet")
        inside = {k: described(v) if k == "inner_config" else v for k, v in given.items()}
        resnet = Resnet(given["resnet_config"]["num_groups_norm"], given["resnet_config"]["use_attention_ffn"])
        return cls(**{**inside, "resnet_config": resnet})

    def module(cls, name):
        home = sys.modules.get(name) or types.ModuleType(name)
        for part in (name.split(".")[0], name):
            monkeypatch.setitem(sys.modules, part, sys.modules.get(part, home))
        setattr(home, cls.__name__, cls)
        cls.__module__, cls.__qualname__ = name, cls.__name__

    monkeypatch.setattr(Resnet, "__module__", "models.unet")
    module(Resnet, "models.unet")
    monkeypatch.setattr(Schedule, "__module__", "samplers")
    module(Schedule, "samplers")
    args = argparse.Namespace(
        model="nested_unet", unet_config=described(config), schedule=Schedule.DEEPFLOYD, out=tmp_path
    )
    path = tmp_path / "vis_model.pth"
    torch.save({"state_dict": weights, "batch_num": 1000, "best_avg_loss": np.float64(0.5), "args": args}, path)
    for name in ("models", "models.unet", "samplers"):
        sys.modules.pop(name, None)
    return path


def test_a_published_file_carries_its_configuration_and_none_of_its_classes_are_needed(published, stored, config):
    model = imported(published)
    assert_meets_the_golden(model, stored)
    assert model.config.backbone == read_config(config)
    assert_meets_the_golden(imported(published, config), stored)


def test_plain_state_dicts_come_in_too(weights, stored, config, tmp_path):
    torch.save(weights, tmp_path / "plain.pth")
    save_file(weights, tmp_path / "plain.safetensors")
    for path in (tmp_path / "plain.pth", tmp_path / "plain.safetensors"):
        assert_meets_the_golden(imported(path, config), stored)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("where", ["beside", "in args", "in place of weights", "as a plain pickle"])
def test_a_malicious_file_is_refused_and_runs_nothing(weights, tmp_path, where):
    canary, path = tmp_path / "canary", tmp_path / "vis_model.pth"
    data = {
        "beside": {"state_dict": weights, "evil": Malice(canary)},
        "in args": {"state_dict": weights, "args": argparse.Namespace(unet_config=Malice(canary))},
    }.get(where, {"state_dict": Malice(canary)})
    if where == "as a plain pickle":
        path.write_bytes(pickle.dumps(data, 2))
    else:
        torch.save(data, path)
    with pytest.raises(CheckpointError, match=r"vis_model.pth: (holds more than tensors|not readable)"):
        imported(path)
    assert not canary.exists()


def test_classes_that_claim_upstream_s_modules_run_nothing(weights, config, tmp_path, monkeypatch):
    """A class by a name that is stood in for must not be the one of that name that is at hand."""
    canary = tmp_path / "canary"

    class Evil:
        def __init__(self, *given):
            canary.touch()

        def __setstate__(self, state):
            canary.touch()

        def __reduce__(self):
            return Evil, (1, 2), {"a": 3}

    home = types.ModuleType("models")
    Evil.__module__, Evil.__qualname__, home.Evil = "models", "Evil", Evil  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", home)
    itself = argparse.Namespace(evil=Evil.__new__(Evil))
    itself.again = itself
    torch.save({"state_dict": weights, "args": itself}, tmp_path / "vis_model.pth")
    imported(tmp_path / "vis_model.pth", config)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", None, {"model": {}}, {"state_dict": {}}, {"state_dict": {1: 2}}, [1]]
)
def test_files_that_hold_no_weights_are_named(weights, tmp_path, content):
    path = tmp_path / "vis_model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"state_dict": weights} if content is None else content, path)
    if content is None:
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"vis_model.pth: (not readable|expected 'state_dict')"):
        imported(path)


def test_damaged_weights_are_refused_by_name(weights, config):
    name = "inner_unet.mid_blocks.0.attn.0.kv_cond.weight"
    with pytest.raises(CheckpointError, match=rf"1 missing \['{name}'\]"):
        imported({n: t for n, t in weights.items() if n != name}, config)
    with pytest.raises(CheckpointError, match=r"1 unknown \['more'\]"):
        imported({**weights, "more": torch.zeros(1)}, config)
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(64, 3\), expected \(64, 16\)"):
        imported({**weights, name: torch.zeros(64, 3)}, config)
    with pytest.raises(CheckpointError, match=rf"{name} holds values that are not finite"):
        imported({**weights, name: weights[name] * torch.nan}, config)


def test_weights_of_no_released_network_need_a_configuration(weights):
    for given in (weights, {"inner_unet." * 3 + "conv_in.weight": torch.zeros(1)}, {"a.weight": torch.zeros(2)}):
        with pytest.raises(UserError, match="of no released network; give the original's configuration"):
            imported(given)


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        ("resolution_chanels", 3, "resolution_chanels: no such setting .* did you mean 'resolution_channels'"),
        ("inner_config.resnet_config.groups", 3, r"inner_config.resnet_config.groups: no such setting"),
        ("num_attention_layers", [0, 0], "num_attention_layers: expected one number, or one for each of 3"),
        ("inner_config.resolution_channels", "8,x", r"inner_config.resolution_channels: expected whole numbers"),
        ("inner_config.micro_conditioning", "scale", r"inner_config.micro_conditioning: expected 'name:default"),
        ("skip_inner_unet_input", True, "skip_inner_unet_input: must be false"),
        ("skip_mid_blocks", False, "skip_mid_blocks: must be true in a network with an inner_config"),
        ("skip_cond_emb", False, "skip_cond_emb: must be true"),
        (
            "conditioning_feature_proj_dim",
            16,
            "inner_config.conditioning_feature_dim: the text comes with 24 numbers a token",
        ),
        ("temporal_spatial_ds", True, "temporal_spatial_ds: needs temporal_mode"),
        ("inner_config.temporal_mode", True, "inner_config.temporal_mode: belongs to networks with an inner_config"),
        ("temporal_dim", 40, "config: NestedUNetConfig: .* found 40 round 32"),
        ("temporal_dim", "wide", "config.time_width: input should be a valid integer; found 'wide'"),
        ("inner_config.resnet_config.num_groups_norm", 3, "width 8 is not a multiple of groups 3"),
        ("inner_config", [1], "inner_config: expected the settings of a network, found list"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_its_path(weights, config, path, new, message):
    with pytest.raises(UserError, match=message):
        imported(weights, changed(config, path, new))


def test_attention_outside_needs_the_width_that_the_innermost_network_gives(golden_json):
    config = golden_json("mdm/nested2_text_outer_attention")["config"]
    assert isinstance(read_config(config), NestedUNetConfig)
    with pytest.raises(
        UserError, match="attention to text of 16 numbers a token, and the innermost network makes it 8"
    ):
        read_config(changed(config, "inner_config.conditioning_feature_proj_dim", 8))


def test_a_size_that_was_not_released_is_refused():
    with pytest.raises(UserError, match="no weights were released for 128 pixels"):
        released(128)
