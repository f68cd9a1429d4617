"""Images to latents and a training on them, as people do it on the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.conftest import DEBUG, WEIGHTS, refused

pytest.importorskip("diffusers")
CODEC = {"type": "KLVAE", "vae": "vae.pth", "channels": 4, "factor": 2, "scale": 0.18215}
ON_LATENTS = (
    *("--set", f"stages.0.codec={json.dumps(CODEC)}", "stages.0.backbone.channels=4", "stages.0.backbone.patch=[2,2]"),
    *("stages.0.backbone.num_classes=2", "stages.0.images=8", "stages.0.batch=4", "stages.0.save_images=4"),
    *("stages.0.data.crop=center", "stages.0.data.flip=true", "stages.0.sample_images=8"),
)


@pytest.fixture
def vae(golden, tmp_path) -> Path:
    """The tiny VAE in CompVis' layout, in the folder that `cli` runs in."""
    path = tmp_path / "vae.pth"
    torch.save({name[3:]: tensor for name, tensor in golden("maskdit/vae_tiny").items() if name[:3] == "sd."}, path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


PLAN = ("--vae", "vae.pth", "--size", "16", "--shard", "2", "--batch", "1", "--flip", "--quiet")


def test_encoding_goes_on_after_a_kill_and_ranks_write_the_same_files(cli, pictures, vae, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "pixelspace", "encode", "pictures", "killed", *PLAN, "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while not (tmp_path / "killed" / "shard-00000.safetensors").exists():
        assert time.monotonic() < end
        time.sleep(0.0002)
    process.send_signal(signal.SIGKILL)
    process.wait()

    code, out, err = cli("encode", "pictures", "killed", *PLAN)
    assert code == 0, err
    assert "16 images and their mirrored copies as 8x8x8 moments" in out and "pixelspace train RECIPE --data" in out
    assert cli("encode", "pictures", "one", *PLAN)[0] == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "one")
    assert cli("encode", "pictures", "one", *PLAN)[1].startswith("16 images")

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in ((1, "rank 1 of 2: its shards are done"), (0, "16 images and their mirrored copies")):
        monkeypatch.setenv("RANK", str(rank))
        code, out, err = cli("encode", "pictures", "two", *PLAN)
        assert code == 0 and out.startswith(said), err
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    monkeypatch.setenv("RANK", "2")
    refused(cli("encode", "pictures", "three", *PLAN), 2, "RANK is 2")


def test_a_recipe_trains_on_latents_and_draws_images(cli, pictures, vae, tmp_path):
    assert cli("encode", "pictures", "latents", *PLAN)[0] == 0
    train = ("train", DEBUG, "--data", "latents", "--out", "run", "--quiet", *ON_LATENTS)
    code, _, err = cli(*train)
    assert code == 0, err
    (sheet, *_) = sorted(Path("run").glob("*/samples/*.png"))
    with Image.open(sheet) as image:
        assert min(image.size) >= 32 and len(np.unique(np.asarray(image))) > 50
    assert json.loads(Path("run/recipe.json").read_text())["stages"][0]["data"]["source"] == {
        "type": "Latents",
        "path": str(tmp_path / "latents"),
    }
    assert cli("sample", "run", "-n", "2", "--label", "b", "--out", "a", "--steps", "2", "--quiet")[0] == 0
    vae.rename(tmp_path / "moved.pth")
    again = ("sample", "run", "-n", "2", "--label", "b", "--steps", "2", "--quiet")
    forget_the_vae()
    refused(cli(*again, "--out", "b"), 4, "vae.pth: no such file")
    assert cli(*again, "--out", "b", "--vae", "moved.pth")[0] == 0
    assert contents(Path("a")) == contents(Path("b"))


def forget_the_vae():
    """As in a new process."""
    from pixelspace.interop import kl_vae

    kl_vae._load.cache_clear()
    kl_vae._network.cache_clear()


def test_latents_that_do_not_fit_the_recipe_are_refused(cli, pictures, vae, golden):
    assert cli("encode", "pictures", "latents", *PLAN[:-2], "--quiet")[0] == 0  # not mirrored

    def train(*settings, data="latents"):
        return cli("train", DEBUG, "--data", data, "--out", "run", "--quiet", *ON_LATENTS, *settings)

    refused(train(), 2, "latents: has no mirrored copies", "--flip", "stages.N.data.flip=false")
    plain = "stages.0.data.flip=false"
    refused(train(plain, "stages.0.size=[32,32]"), 2, "latents of 16x16 images", "the stage's size is 32x32")
    refused(train(plain, "stages.0.codec.scale=0.5"), 2, "latents of another codec", "scale=0.18215", "scale=0.5")
    other = {name[3:]: tensor * 1.01 for name, tensor in golden("maskdit/vae_tiny").items() if name[:3] == "sd."}
    torch.save(other, "other.pth")
    refused(train(plain, "stages.0.codec.vae=other.pth"), 2, "latents of another codec")
    refused(train(plain, "stages.0.codec.vae=none.pth"), 4, "none.pth: no such file")
    refused(train(plain, "stages.0.codec.factor=1"), 2, "this VAE has factor 2, the codec says 1")
    pixels = ("train", DEBUG, "--data", "latents", "--out", "run", "--set", plain)
    refused(cli(*pixels), 2, "latents of another codec", "Pixels")
    shard = Path("latents/shard-00003.safetensors")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    refused(train(plain), 3, "shard-00003.safetensors: cut short", "pixelspace encode")
    shard.unlink()
    refused(train(plain), 3, "shard-00003.safetensors: missing", "pixelspace encode")
    Path("latents/latents.json").unlink()
    refused(train(plain), 3, "7 of 8 shards are there", "pixelspace encode")


def test_what_cannot_be_encoded_is_refused_in_one_line(cli, pictures, vae, tmp_path):
    def encode(*more, images="pictures", out="latents"):
        return cli("encode", images, out, "--size", "16", "--quiet", "--vae", *more)

    refused(encode("none.pth"), 4, "none.pth: no such file")
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    refused(encode("evil.pth"), 4, "evil.pth")
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pth")
    refused(encode("other.pth"), 4, "other.pth: not a KL autoencoder")
    assert not (tmp_path / "canary").exists() and not (tmp_path / "latents").exists()
    refused(encode("vae.pth", images="nowhere"), 3, "nowhere: no such folder")
    refused(encode("vae.pth", out="pictures"), 2, "pictures: holds something else")
    refused(encode("vae.pth", out="vae.pth"), 6, "vae.pth: cannot be written")
    refused(encode("vae.pth", "--size", "15"), 2, "image height 15", "14 and 16")
    assert encode("vae.pth")[0] == 0
    refused(encode("vae.pth", "--half"), 2, "latents: was begun with other settings", "half: False -> True")


def test_a_model_of_pixels_takes_no_vae(cli):
    refused(cli("sample", WEIGHTS, "--vae", "x.pth", "--out", "o"), 2, "draws pixels without a VAE")
