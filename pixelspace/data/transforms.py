"""Images cut to the size that is trained."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    return to_tensor(pixels.resize((width, height), Image.Resampling.BICUBIC))


def fit(
    image: Tensor, size: tuple[int, int], *, crop: Literal["center", "random"], u: tuple[float, float], flip: bool
) -> Tensor:
    """uint8 (3, H, W) to (3, *size): resized (antialiased bicubic) until it just covers `size`, then cut and mirrored.

    A random crop stands at the shares u = (down, right) in [0, 1) of the room there is.
    """
    h, w = size
    height, width = image.shape[1:]
    scale = max(h / height, w / width)
    if scale != 1:
        height, width = max(h, round(height * scale)), max(w, round(width * scale))
        image = _resized(image, height, width)
    if crop == "random":
        top, left = int(u[0] * (height - h + 1)), int(u[1] * (width - w + 1))
    else:
        top, left = (height - h) // 2, (width - w) // 2
    image = image[:, top : top + h, left : left + w]
    return (image.flip(2) if flip else image).contiguous()
