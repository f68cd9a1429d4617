"""Small pictures for a browser, of images that are still being drawn."""

import io

from einops import rearrange
from torch import Tensor

from pixelspace.data.grid import grid_image

SIDE = 512


def preview(picture: Tensor, side: int = SIDE) -> bytes:
    """A JPEG of uint8 (H, W, C), of a clip (T, H, W, C) the middle frame, at most about `side` wide and high."""
    frame = picture if picture.ndim == 3 else picture[len(picture) // 2]
    image, file = grid_image(rearrange(frame, "h w c -> 1 c h w"), 1, gap=0), io.BytesIO()
    image.reduce(max(1, -(-max(image.size) // side))).save(file, format="JPEG", quality=85)
    return file.getvalue()
