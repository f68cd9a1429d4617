"""One set of pictures in every form that images can be judged from."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def pictures(n: int = 5, height: int = 6, width: int = 8, seed: int = 0) -> np.ndarray:
    """uint8 (n, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def encoded(picture: np.ndarray, form: str = "png", **settings) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, **settings)
    return file.getvalue()


def named(images: np.ndarray) -> dict[str, bytes]:
    """PNGs in folders, by name."""
    return {f"{'ab'[i % 2]}/{i:03}.png": encoded(image) for i, image in enumerate(images)}


def to_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def to_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in reversed(files.items()):
            archive.writestr(name, data)
    return path


def to_tar(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in reversed(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
