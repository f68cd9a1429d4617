"""Tar shards for tests."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

Members = list[tuple[str, bytes]]


def png(seed: int, width: int = 8, height: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


def sample(i: int, **numbers) -> Members:
    """What img2dataset writes of an image."""
    key = f"{i:09d}"
    metadata = {"caption": f"caption {i}", "key": key, "status": "success", "exif": None, **numbers}
    return [
        (f"{key}.png", png(i)),
        (f"{key}.txt", f"caption {i}".encode()),
        (f"{key}.json", json.dumps(metadata).encode()),
    ]


def write_tar(path: Path, members: Members, how: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=how) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, shards: int = 3, each: int = 4) -> Path:
    """`00000.tar` and so on, with samples numbered on."""
    for shard in range(shards):
        ids = range(shard * each, (shard + 1) * each)
        write_tar(folder / f"{shard:05d}.tar", [one for i in ids for one in sample(i, score=i / 10)])
    return folder
