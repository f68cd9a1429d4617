"""What those who follow a page have at home: photographs by kind, some with captions, and an autoencoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

KINDS = (
    "badlands beach canyon city desert dune earthrise fields fog forest hills industrial lava mountain sea sky snow "
    "space station valley water"
).split()


def photographs(folder: Path, captions: bool) -> None:
    """A picture of each kind, (36, 72) pixels."""
    rng = np.random.default_rng(0)
    for kind in KINDS:
        path = folder / kind / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (36, 72, 3), np.uint8)).save(path)
        if captions:
            path.with_suffix(".txt").write_text(f"a photo of {kind}")


@pytest.fixture
def home(tmp_path, monkeypatch, golden) -> Path:
    """An empty working folder with such a home."""
    photographs(tmp_path / "home/landscapes", captions=False)
    photographs(tmp_path / "home/captioned", captions=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vae = {name[3:]: tensor for name, tensor in golden("maskdit/vae_tiny").items() if name.startswith("sd.")}
    torch.save(vae, "autoencoder_kl.pth")
    return tmp_path / "home"
