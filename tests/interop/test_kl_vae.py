import argparse
import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pixelspace.config import from_data, to_data
from pixelspace.errors import CheckpointError, ResourceError, UserError
from pixelspace.interop.kl_vae import KLVAE, network_config, open_vae, renamed, sampled
from pixelspace.random import Rng

pytest.importorskip("diffusers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stored(golden):
    return golden("maskdit/vae_tiny")


@pytest.fixture(scope="module")
def weights(stored):
    return {name[3:]: tensor for name, tensor in stored.items() if name.startswith("sd.")}


@pytest.fixture(scope="module")
def layouts(weights, tmp_path_factory):
    """The tiny VAE as a state dict's file, as safetensors, and as diffusers saves it, today and in its older names."""
    folder = tmp_path_factory.mktemp("vae")
    torch.save(weights, folder / "autoencoder_kl.pth")
    save_file(weights, folder / "vae.safetensors")
    network = open_vae(folder / "autoencoder_kl.pth")._network(CPU)
    network.save_pretrained(folder / "diffusers")
    network.save_pretrained(folder / "old", safe_serialization=False)
    older = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, tensor in network.state_dict().items():
        for new, old in older.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    torch.save(tensors, folder / "old" / "diffusion_pytorch_model.bin")
    return folder


LAYOUTS = ["autoencoder_kl.pth", "vae.safetensors", "diffusers", "old"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_numbers(stored, layouts, layout):
    vae = open_vae(layouts / layout)
    assert (vae.channels, vae.factor, vae.scale) == (4, 2, 0.18215)
    network = vae._network(CPU)
    moments = network.encode(stored["img"]).latent_dist.parameters
    torch.testing.assert_close(moments, stored["moments"], rtol=1e-5, atol=1e-5)
    z = sampled(moments, stored["noise"], vae.scale)
    torch.testing.assert_close(z, stored["z"], rtol=1e-5, atol=1e-5)
    decoded = network.decode(z / vae.scale).sample
    torch.testing.assert_close(decoded, stored["decoded"], rtol=1e-5, atol=1e-5)
    off = (vae.decode(stored["z"]).int() - stored["uint8"].int()).abs()
    assert off.max() <= 1 and off.count_nonzero() <= 3  # at the edge between two bytes
    assert vae.identity() == open_vae(layouts / LAYOUTS[0]).identity()


def test_moments_are_sampled_as_maskdit_does(golden):
    tables = golden("maskdit/tables")
    torch.testing.assert_close(sampled(tables["moments"], tables["moments.noise"], 0.18215), tables["moments.z"])


def test_the_released_autoencoder_maps_one_to_one(golden_json):
    from diffusers import AutoencoderKL

    described = golden_json("maskdit/sd_vae_keys")
    tensors = {name: torch.empty(shape, device="meta") for name, shape in described["keys"].items()}
    with torch.device("meta"):
        network = AutoencoderKL(**network_config(renamed(tensors)))
    ours = {name: tuple(tensor.shape) for name, tensor in renamed(tensors).items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} and len(ours) == 248
    assert sum(tensor.numel() for tensor in network.parameters()) == described["params"] == 83_653_863


def test_an_image_goes_to_latents_and_back(layouts):
    vae = open_vae(layouts / "autoencoder_kl.pth")
    images = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8)
    stored = vae.store(images)
    assert stored.shape == (3, 8, 8, 12) and stored.dtype == torch.float32 and not stored.requires_grad
    moments = vae._network(CPU).encode(images.float() / 127.5 - 1).latent_dist.parameters
    torch.testing.assert_close(stored, moments)
    x = vae.encode(stored, Rng(0), torch.arange(3))
    assert x.shape == (3, 4, *vae.latent_size((16, 24)))
    assert vae.decode(x).shape == images.shape and vae.decode(x).dtype == torch.uint8


def test_a_posterior_is_sampled_afresh_at_every_position(layouts):
    vae = open_vae(layouts / "autoencoder_kl.pth")
    moments = torch.randn(1, 8, 8, 8).repeat(4, 1, 1, 1)
    x = vae.encode(moments, Rng(0), torch.tensor([5, 6, 5, 7]))
    assert torch.equal(x[0], x[2]) and not torch.equal(x[0], x[1])
    assert torch.equal(x[1:2], vae.encode(moments[:1], Rng(0), torch.tensor([6])))
    assert not torch.equal(x, vae.encode(moments, Rng(1), torch.tensor([5, 6, 5, 7])))
    assert vae.encode(moments.half(), Rng(0), torch.arange(4)).dtype == torch.float32


def test_an_image_is_decoded_the_same_whatever_stands_beside_it(layouts):
    vae = open_vae(layouts / "autoencoder_kl.pth")
    x = torch.randn(3, 4, 8, 8)
    assert torch.equal(vae.decode(x)[1:2], vae.decode(x[1:2]))


def test_autocast_changes_nothing(layouts):
    vae = open_vae(layouts / "autoencoder_kl.pth")
    images, x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), torch.randn(2, 4, 8, 8)
    plain = vae.store(images), vae.decode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vae.store(images), plain[0])
        assert torch.equal(vae.decode(x), plain[1])


def test_the_codec_is_a_value(layouts):
    vae = open_vae(layouts / "diffusers")
    assert from_data(to_data(vae), {"KLVAE": KLVAE}) == vae
    with pytest.raises(UserError, match="must be positive"):
        from_data({**to_data(vae), "factor": 0}, {"KLVAE": KLVAE})


def test_the_identity_follows_weights_and_scale(layouts, weights, tmp_path):
    vae = open_vae(layouts / "autoencoder_kl.pth")
    other = {**weights, "quant_conv.bias": weights["quant_conv.bias"] + 1}
    torch.save(other, tmp_path / "other.pth")
    identities = {vae.identity(), replace(vae, scale=0.5).identity(), open_vae(tmp_path / "other.pth").identity()}
    assert len(identities) == 3


@pytest.mark.parametrize(("field", "found", "message"), [("channels", 16, "4.*16"), ("factor", 8, "2.*8")])
def test_fields_that_are_not_the_networks_are_refused(layouts, field, found, message):
    vae = replace(open_vae(layouts / "autoencoder_kl.pth"), **{field: found})
    with pytest.raises(UserError, match=rf"autoencoder_kl.pth: this VAE has {field} {message}"):
        vae.identity()


def with_config(layouts, folder, **changes):
    folder.mkdir()
    config = json.loads((layouts / "diffusers" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "diffusion_pytorch_model.safetensors").symlink_to(
        layouts / "diffusers" / "diffusion_pytorch_model.safetensors"
    )
    return folder


def test_the_scale_of_a_diffusers_folder_is_taken_or_must_agree(layouts, tmp_path):
    vae = open_vae(with_config(layouts, tmp_path / "xl", scaling_factor=0.13025))
    assert vae.scale == 0.13025
    with pytest.raises(UserError, match=r"this VAE has scale 0.13025, the codec says 0.18215"):
        replace(vae, scale=0.18215).identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "AsymmetricAutoencoderKL"},
        {"shift_factor": 0.1},
        {"norm_num_groups": 8},
        {"scaling_factor": "x"},
    ],
    ids=str,
)
def test_a_diffusers_folder_of_another_kind_is_refused(layouts, tmp_path, changes):
    (key,) = changes
    with pytest.raises(CheckpointError, match=rf"config.json: {key} is"):
        open_vae(with_config(layouts, tmp_path / "vae", **changes))


def test_a_folder_without_its_files_is_named(layouts, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config.json; give the folder of a VAE"):
        open_vae(tmp_path)
    folder = with_config(layouts, tmp_path / "vae")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors: no such file"):
        open_vae(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: not readable as JSON"):
        open_vae(folder)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_no_vae_are_refused_in_one_line(weights, tmp_path):
    def refused(name, data, *words):
        path = tmp_path / name
        path.write_bytes(data) if isinstance(data, bytes) else torch.save(data, path)
        with pytest.raises(CheckpointError) as caught:
            open_vae(path)
        assert all(word in str(caught.value) for word in (name, *words)), caught.value

    with pytest.raises(CheckpointError, match=r"nowhere.pth: no such file"):
        open_vae(tmp_path / "nowhere.pth")
    torch.save(weights, tmp_path / "whole.pth")
    refused("empty.pth", b"", "not readable as a PyTorch checkpoint")
    refused("cut.pth", (tmp_path / "whole.pth").read_bytes()[:-1000], "not readable as a PyTorch checkpoint")
    refused("text.safetensors", b"hello", "not readable as safetensors")
    refused("evil.pth", {**weights, "x": Malice(tmp_path / "canary")}, "holds more than tensors")
    assert not (tmp_path / "canary").exists()
    refused("list.pth", [1], "expected the state dict")
    refused("args.pth", {"a": argparse.Namespace()}, "expected the state dict")
    refused("other.pth", {"blocks.0.weight": torch.ones(3)}, "no convolution 'encoder.conv_in.weight'")
    refused("flat.pth", {**weights, "encoder.conv_in.weight": torch.ones(3)}, "no convolution")
    vq = {**weights, "encoder.conv_out.weight": torch.ones(4, 64, 3, 3)}
    refused("vq.pth", vq, "not a KL autoencoder of RGB images", "3 channels to 4, 4 to 3")
    less = {name: tensor for name, tensor in weights.items() if name != "decoder.norm_out.bias"}
    refused("less.pth", less, "1 missing ['decoder.conv_norm_out.bias']")
    refused("more.pth", {**weights, "loss.logvar": torch.zeros(())}, "1 unknown ['loss.logvar']")
    refused("nan.pth", {**weights, "quant_conv.bias": torch.full((8,), torch.nan)}, "not finite")


def test_the_absence_of_diffusers_names_the_extra(weights, tmp_path, monkeypatch):
    torch.save(weights, tmp_path / "vae.pth")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ResourceError, match=r"pip install 'pixelspace\[vae\]'"):
        open_vae(tmp_path / "vae.pth")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers(layouts, stored):
    vae = open_vae(layouts / "autoencoder_kl.pth")
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(vae.store(images.cuda()).cpu(), vae.store(images), rtol=1e-2, atol=1e-2)  # TF32
        off = (vae.decode(stored["z"].cuda()).cpu().int() - stored["uint8"].int()).abs()
    assert off.max() <= 2
