"""Images cut to the size that is trained."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


Crop = Literal["center", "random", "adm"]


class Cut(NamedTuple):
    """How an image is cut to `size`: at the centre, or at the shares u = (down, right) in [0, 1) of the room there is;
    and if it is mirrored. `adm` is the centre with the resizing of Dhariwal and Nichol 2021."""

    size: tuple[int, int]
    crop: Crop = "center"
    u: tuple[float, float] = (0.5, 0.5)
    flip: bool = False


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    return to_tensor(pixels.resize((width, height), Image.Resampling.BICUBIC))


def _adm_resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Halved by boxes while both sides stay at least twice as long, then bicubically to cover `size`."""
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    h, w = size
    while pixels.height >= 2 * h and pixels.width >= 2 * w:
        pixels = pixels.resize((pixels.width // 2, pixels.height // 2), Image.Resampling.BOX)
    scale = max(h / pixels.height, w / pixels.width)
    covering = (max(w, round(pixels.width * scale)), max(h, round(pixels.height * scale)))
    return to_tensor(pixels.resize(covering, Image.Resampling.BICUBIC))


def fit(image: Tensor, cut: Cut) -> Tensor:
    """uint8 (3, H, W) to (3, *cut.size): resized (antialiased bicubic) until it just covers the size, then cut.

    Sizes and the centre are rounded as torchvision's Resize and CenterCrop do, or for `adm` as in ADM's code.
    """
    h, w = cut.size
    height, width = image.shape[1:]
    if cut.crop == "adm":
        image = _adm_resized(image, cut.size)
    else:
        if h * width >= w * height:
            covering = h, max(w, h * width // height)
        else:
            covering = max(h, w * height // width), w
        if covering != (height, width):
            image = _resized(image, *covering)
    down, right = image.shape[1] - h, image.shape[2] - w
    if cut.crop == "random":
        top, left = int(cut.u[0] * (down + 1)), int(cut.u[1] * (right + 1))
    elif cut.crop == "adm":
        top, left = down // 2, right // 2
    else:
        top, left = round(down / 2), round(right / 2)
    out = image[:, top : top + h, left : left + w]
    return (out.flip(2) if cut.flip else out).clone(memory_format=torch.contiguous_format)
