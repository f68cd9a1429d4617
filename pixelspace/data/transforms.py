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

    Sizes and the centre are rounded as torchvision's Resize and CenterCrop do. A random crop stands at the shares
    u = (down, right) in [0, 1) of the room there is.
    """
    h, w = size
    height, width = image.shape[1:]
    if h * width >= w * height:
        covering = h, max(w, h * width // height)
    else:
        covering = max(h, w * height // width), w
    if covering != (height, width):
        image = _resized(image, *covering)
    down, right = covering[0] - h, covering[1] - w
    if crop == "random":
        top, left = int(u[0] * (down + 1)), int(u[1] * (right + 1))
    else:
        top, left = round(down / 2), round(right / 2)
    cut = image[:, top : top + h, left : left + w]
    return (cut.flip(2) if flip else cut).clone(memory_format=torch.contiguous_format)
