"""Folders of images for the tests of indexing, and what an index says of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from pixelspace.data.index import Index


def draw(path: Path, width: int = 12, height: int = 8, seed: int = 0, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


def names(index: Index) -> list[str]:
    return [entry.name for entry in index.good]


def reasons(index: Index) -> dict[str, str]:
    return {entry.name: entry.reason for entry in index.bad}
