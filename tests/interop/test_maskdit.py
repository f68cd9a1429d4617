import argparse
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import pixelspace as ps
from pixelspace.backbones.maskdit import MaskDiTConfig
from pixelspace.data.codec import Pixels
from pixelspace.errors import CheckpointError, UserError
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.interop.maskdit import SeededDraws, read_arguments, read_model
from pixelspace.recipes.maskdit import maskdit
from tests.conftest import GOLDENS

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
VARIANTS = ("no_decoder", "decoder_no_mae", "cls_token", "cls_token_direct")


@pytest.fixture
def weights():
    return load_file(GOLDENS / "maskdit/tiny_state_dict.safetensors")


@pytest.fixture
def config(golden_json):
    return golden_json("maskdit/tiny_state_dict")["config"]


def imported(source, config, **given):
    return ps.import_checkpoint(source, system="maskdit", config=config, device="cpu", **given)


def assert_meets_the_golden(model, golden):
    stored = golden("maskdit/precond")
    for case in ("a", "b"):
        x, sigma = stored[f"{case}.x"], stored[f"{case}.sigma"]
        torch.testing.assert_close(
            model.denoised(x, sigma, {"label": stored["in.y"]}), stored[f"{case}.eval.D"], **CLOSE
        )
        torch.testing.assert_close(model.denoised(x, sigma), stored[f"{case}.eval.D_null"], **CLOSE)


def test_a_state_dict_gives_the_same_numbers(golden, golden_json, weights, config):
    model = imported(weights, config)
    assert_meets_the_golden(model, golden)
    assert model.config.size == (64, 64) and model.config.codec == KLVAE()
    assert model.config.sampling.solver == "heun" and model.config.sampling.guidance == 1.5
    assert_meets_the_golden(imported(weights, golden_json("maskdit/tiny_state_dict")), golden)
    few = {key: config[key] for key in ("num_heads", "decoder_num_heads")}
    assert_meets_the_golden(imported(weights, few), golden)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_told_by_their_tensors(golden, golden_json, name):
    stored, config = golden(f"maskdit/variant_{name}"), golden_json(f"maskdit/variant_{name}")["config"]
    weights = {key.removeprefix("sd."): tensor for key, tensor in stored.items() if key.startswith("sd.")}
    found = imported(weights, config).denoised(stored["x"], stored["sigma"], {"label": stored["y"]})
    torch.testing.assert_close(found, stored["eval.D"], **CLOSE)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", ""])
def test_a_training_checkpoint_gives_its_average_or_its_raw_weights(golden, weights, config, tmp_path, prefix):
    path = tmp_path / "2000000.pt"
    named = {prefix + name: tensor for name, tensor in weights.items()}
    raw = {name: torch.full_like(tensor, 0.25) for name, tensor in named.items()}
    args = argparse.Namespace(config="configs/train.yaml", lr=1e-4)
    torch.save({"model": raw, "ema": named, "opt": {"state": {}, "param_groups": []}, "args": args}, path)
    assert_meets_the_golden(imported(path, config), golden)
    whole = imported(path, config, weights="raw").backbone.state_dict()
    assert all((tensor == 0.25).all() for tensor in whole.values())
    assert read_arguments(path) == {"config": "configs/train.yaml", "lr": 1e-4}


def test_other_layouts_come_in_too(golden, weights, config, tmp_path):
    plain = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    assert_meets_the_golden(imported(plain, config), golden)
    torch.save(weights, tmp_path / "plain.pt")
    assert_meets_the_golden(imported(tmp_path / "plain.pt", config), golden)
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_meets_the_golden(imported(tmp_path / "weights.safetensors", tmp_path / "config.json"), golden)


def test_labels_are_numbers_rows_or_ignored(golden, weights, config):
    stored, model = golden("maskdit/precond"), imported(weights, config)
    x, sigma = stored["a.x"], stored["a.sigma"]
    numbers = torch.tensor([3, -1, 9])
    rows = torch.eye(11)[numbers][:, :10]
    torch.testing.assert_close(model.denoised(x, sigma, {"label": numbers}), model.denoised(x, sigma, {"label": rows}))
    unlabelled = {name: tensor for name, tensor in weights.items() if "y_embedder" not in name}
    without = imported(unlabelled, {**config, "num_classes": 0})
    given = without.denoised(x, sigma, {"label": stored["in.y"]})
    assert torch.equal(given, without.denoised(x, sigma))
    torch.testing.assert_close(given, stored["a.eval.D_null"], **CLOSE)


@pytest.mark.parametrize("name", ["feature_embedder", "feat_embedder"])
def test_features_condition_the_networks_that_have_them(golden, weights, config, name):
    stored = golden("maskdit/precond")
    x, sigma, cond = stored["a.x"], stored["a.sigma"], {"label": stored["in.y"]}
    map_ = {f"model.{name}.weight": torch.randn(64, 6), f"model.{name}.bias": torch.zeros(64)}
    model = imported({**weights, **map_}, {**config, "ext_feature_dim": 6})
    torch.testing.assert_close(
        model.denoised(x, sigma, {**cond, "feature": torch.zeros(3, 6)}), stored["a.eval.D"], **CLOSE
    )
    assert not torch.allclose(model.denoised(x, sigma, {**cond, "feature": torch.ones(3, 6)}), stored["a.eval.D"])
    with pytest.raises(UserError, match=r"needs cond\['feature'\]"):
        model.denoised(x, sigma, cond)


def test_a_network_that_sees_its_own_features_encodes_twice(golden, weights, config):
    stored = golden("maskdit/precond")
    x, sigma, cond = stored["a.x"], stored["a.sigma"], {"label": stored["in.y"]}
    map_ = {"model.enc_feat_embedder.weight": torch.randn(64, 64), "model.enc_feat_embedder.bias": torch.randn(64)}
    model = imported({**weights, **map_}, {**config, "use_encoder_feat": True})
    plain = imported(weights, config).backbone
    feature = stored["a.eval.feat"] @ map_["model.enc_feat_embedder.weight"].T + map_["model.enc_feat_embedder.bias"]
    plain.t_embedder.register_forward_hook(lambda module, given, out: out + feature)
    inputs, c_noise = model.config.process.inputs(x, sigma)
    expected = model.config.process.denoised(plain(inputs, c_noise, cond), x, sigma)
    # Float32 at sigmas up to 80, by sums in another order.
    torch.testing.assert_close(model.denoised(x, sigma, cond), expected, rtol=1e-4, atol=5e-6)


def test_an_imported_model_saves_loads_and_makes_pixels_where_it_is_of_them(tmp_path):
    config = MaskDiTConfig(32, 1, 2, (8, 8), channels=3, num_classes=4)
    network = config.build()
    model = imported(network.state_dict(), {"num_heads": 2})
    assert model.config.codec == Pixels() and model.config.backbone == config
    again = ps.load(model.save(tmp_path / "model"))
    images = again.sample(2, label=3, steps=2, progress=False)
    assert images.shape == (2, 8, 8, 3) and torch.equal(images, model.sample(2, label=3, steps=2, progress=False))


def test_the_published_layout_is_read_off_its_shapes(golden_json):
    """Names and shapes of the released XL/2, with numbers that take no memory."""
    for size in (32, 64):
        shapes = golden_json("maskdit/maskdit_keys_XL2")[f"DiT-XL/2 latent {size} use_decoder mae"]
        weights = {f"_orig_mod.{name}": torch.zeros(1).expand(shape) for name, shape in shapes.items()}
        read = read_model(weights)
        assert read.backbone == maskdit("XL", size=(size, size)) and read.size == (8 * size, 8 * size)


def test_draws_by_seed_meet_the_golden(golden):
    stored = golden("maskdit/tables")
    draws = SeededDraws([0, 1, 2, 12345, 2**32 + 5])
    assert torch.equal(draws.normal((4, 2, 2)), stored["srg.latents"])
    assert torch.equal(draws.labels(1000), stored["srg.labels"])
    assert torch.equal(draws.normal((4, 2, 2)), stored["srg.latents2"])


def test_latents_are_not_decoded_without_their_vae(weights, config):
    with pytest.raises(CheckpointError, match=r"autoencoder_kl.pth: no such file"):
        imported(weights, config).sample(1, steps=2, progress=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"decoder_depth": 3}, CheckpointError, "another network: decoder_depth is 2 in it, 3 in config"),
        ({"decoder_hidden_size": 512}, CheckpointError, "decoder_hidden_size is 32 in it, 512 in config"),
        ({"use_decoder": False}, CheckpointError, "use_decoder is True in it, False in config"),
        ({"mae_loss_coef": 0.0}, CheckpointError, "mae_loss_coef and mask_token disagree"),
        ({"num_classes": 1000}, CheckpointError, "num_classes is 10 in it"),
        ({"img_resolution": 32}, CheckpointError, "img_resolution is 8 in it"),
        ({"num_heads": 5}, UserError, "multiple of 4 and of num_heads"),
        ({"hiden_size": 64}, UserError, "no such setting; did you mean 'hidden_size'"),
    ],
)
def test_a_configuration_that_disagrees_is_refused(weights, config, change, error, message):
    with pytest.raises((error, ValueError), match=message):
        imported(weights, {**config, **change})


def test_checkpoints_that_are_none_are_refused_by_name(weights, config, tmp_path):
    with pytest.raises(UserError, match=r"config.num_heads: cannot be told"):
        imported(weights, None)
    with pytest.raises(CheckpointError, match=r"expected x_embedder.proj.weight with 4 axes, found names"):
        imported({"a.weight": torch.zeros(2)}, config)
    cut = {name: tensor for name, tensor in weights.items() if "decoder_blocks.0" not in name}
    with pytest.raises(CheckpointError, match=r"decoder_blocks: blocks \[1\] are not numbered from 0 on"):
        imported(cut, config)
    with pytest.raises(CheckpointError, match=r"1 missing \['blocks.0.attn.qkv.bias'\]"):
        imported({name: tensor for name, tensor in weights.items() if name != "model.blocks.0.attn.qkv.bias"}, config)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text.pt: not readable"):
        imported(tmp_path / "text.pt", config)
    torch.save({"model": weights}, tmp_path / "raw.pt")
    with pytest.raises(CheckpointError, match=r"raw.pt: expected 'ema' with a network's tensors, found \['model'\]"):
        imported(tmp_path / "raw.pt", config)
