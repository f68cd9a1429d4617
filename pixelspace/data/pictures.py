"""What was drawn, as people look at it: uint8 images (n, H, W, C) or clips (n, T, H, W, C), and files of them."""

import io
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pixelspace.data.animation import decoded
from pixelspace.data.codec import Codec
from pixelspace.data.grid import grid_image
from pixelspace.errors import DataError

_KEY = "pixelspace"
_DESCRIPTION = 0x010E  # ImageDescription of EXIF


def pictures(codec: Codec, levels: Sequence[Tensor], tiles: int, truncate: bool | None = None) -> list[Tensor]:
    """Images on the CPU of the levels (n, C, H, W) of a pyramid in model space, the finest first; `truncate` as in
    `Codec.decode`. Of `tiles` x `tiles` frames an image is a clip, and the last of several levels one of a frame."""
    found = []
    for i, level in enumerate(levels):
        side = tiles if i == 0 or i < len(levels) - 1 else 1
        clips = rearrange(codec.decode(level, truncate).cpu(), "n c (i h) (j w) -> n (i j) h w c", i=side, j=side)
        found.append((clips if tiles > 1 else clips[:, 0]).contiguous())
    return found


def size_name(images: Tensor) -> str:
    """The size of images or clips as files are named by it: a side, HxW, or of clips TxHxW."""
    sizes = images.shape[1:-1]
    return str(sizes[0]) if len(sizes) == 2 and sizes[0] == sizes[1] else "x".join(map(str, sizes))


def sheet(images: Tensor, columns: int = 0) -> Image.Image:
    """All side by side: a clip in a row of its frames, images in rows of `columns` (0: the sheet is square)."""
    frames = images.shape[1] if images.ndim == 5 else 1
    flat = rearrange(images.flatten(0, 1) if images.ndim == 5 else images, "n h w c -> n c h w")
    return grid_image(flat, frames if frames > 1 else columns or math.ceil(math.sqrt(len(flat))))


def file_of(picture: Tensor, fps: float, settings: Mapping[str, Any] | None = None) -> tuple[str, bytes]:
    """The format and the bytes of an image (H, W, C), or a clip of one frame, as a PNG, of a clip (T, H, W, C) of more
    as an animated WebP of `fps` frames a second, both without loss. `settings` are put in as JSON: the PNG's text
    `pixelspace`, the WebP's EXIF description."""
    frames = picture if picture.ndim == 4 else picture[None]
    first, *others = (grid_image(rearrange(frame, "h w c -> 1 c h w"), 1, gap=0) for frame in frames)
    file, said = io.BytesIO(), json.dumps(settings)
    if not others:
        info = PngInfo()
        if settings is not None:
            info.add_text("Software", _KEY)
            info.add_itxt(_KEY, said)
        first.save(file, format="PNG", pnginfo=info)
        return "png", file.getvalue()
    exif = Image.Exif()
    if settings is not None:
        exif[_DESCRIPTION] = said  # ASCII, as JSON is without further words
    ends = [round(1000 * count / fps) for count in range(len(frames) + 1)]
    how = {"save_all": True, "append_images": others, "duration": np.diff(ends).tolist(), "loop": 0, "lossless": True}
    first.save(file, format="WEBP", exif=exif, **how)
    return "webp", file.getvalue()


def settings_in(data: bytes) -> Any:
    """The settings that `file_of` put into a file, None if it put none."""
    with Image.open(io.BytesIO(data)) as image:
        said = image.info.get(_KEY) if image.format == "PNG" else image.getexif().get(_DESCRIPTION)
    return None if said is None else json.loads(said)


def save_picture(picture: Tensor, path: Path, fps: float, settings: Mapping[str, Any] | None = None) -> Path:
    """Writes `file_of` a picture, whole or not at all; `path` is without the suffix, and what is returned with it."""
    suffix, data = file_of(picture, fps, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(data)
    return partial.replace(path.parent / f"{path.name}.{suffix}")


def read_picture(path: Path, frames: int, fps: float) -> Tensor:
    """What `save_picture` wrote at `fps`: uint8 (H, W, 3), or of more than one frame (T, H, W, 3).

    Raises:
        DataError: absent or damaged.
    """
    try:
        found = [(frame.pts, frame.pixels()) for frame in decoded(path, frames, [])]
    except DataError as error:
        raise DataError(f"{path}: {error}; delete it and run the same command again") from error
    starts, pixels = zip(*found, strict=True)  # of frames that are alike in a row, WebP keeps one, for longer
    places = [bisect_right(starts, round(1000 * number / fps)) - 1 for number in range(frames)]
    clip = torch.from_numpy(np.stack([pixels[place] for place in places]))
    return clip if frames > 1 else clip[0]
