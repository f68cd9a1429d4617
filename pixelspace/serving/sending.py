"""Pictures as bytes for a browser: previews that are small, and files that say how they were drawn."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pixelspace.data.grid import grid_image

KEY = "pixelspace"
_DESCRIPTION = 0x010E  # ImageDescription of EXIF
PREVIEW = 512


def _image(picture: Tensor) -> Image.Image:
    return grid_image(rearrange(picture, "h w c -> 1 c h w"), 1, gap=0)


def _saved(image: Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **how)
    return file.getvalue()


def preview(picture: Tensor, side: int = PREVIEW) -> bytes:
    """A JPEG of uint8 (H, W, C), of a clip (T, H, W, C) the middle frame, at most about `side` wide and high."""
    image = _image(picture if picture.ndim == 3 else picture[len(picture) // 2])
    return _saved(image.reduce(max(1, -(-max(image.size) // side))), format="JPEG", quality=85)


def file_of(picture: Tensor, settings: Mapping[str, Any], fps: float) -> tuple[str, bytes]:
    """The media type and the bytes of an image (H, W, C) as a PNG, or of a clip (T, H, W, C) as an animated WebP, both
    without loss, with the settings as JSON inside: the PNG's text `pixelspace`, the WebP's EXIF description."""
    said = json.dumps(settings)
    frames = picture if picture.ndim == 4 else picture[None]
    if len(frames) == 1:
        info = PngInfo()
        info.add_text("Software", "pixelspace")
        info.add_itxt(KEY, said)
        return "image/png", _saved(_image(frames[0]), format="PNG", pnginfo=info)
    exif = Image.Exif()
    exif[_DESCRIPTION] = said  # ASCII, as JSON is without further words
    first, *others = (_image(frame) for frame in frames)
    ends = [round(1000 * count / fps) for count in range(len(frames) + 1)]
    how = {"save_all": True, "append_images": others, "duration": np.diff(ends).tolist(), "loop": 0, "lossless": True}
    return "image/webp", _saved(first, format="WEBP", exif=exif, **how)


def settings_in(data: bytes) -> Any:
    """The settings that `file_of` put into a file."""
    with Image.open(io.BytesIO(data)) as image:
        return json.loads(image.info[KEY] if image.format == "PNG" else image.getexif()[_DESCRIPTION])
