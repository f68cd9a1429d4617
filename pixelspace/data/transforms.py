"""Images cut to the size that is trained."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


Crop = Literal["center", "random", "adm"]


class Cut(NamedTuple):
    """How an image is cut to `size`: at the centre, or at the shares u = (down, right) in [0, 1) of the room there is;
    and if it is mirrored. `adm` is the centre with the resizing of Dhariwal and Nichol 2021. A clip begins at the share
    `time` in [0, 1) of the room there is for it in its file."""

    size: tuple[int, int]
    crop: Crop = "center"
    u: tuple[float, float] = (0.5, 0.5)
    flip: bool = False
    time: float = 0.5


class Place(NamedTuple):
    """The size (height, width) that an image is brought to, and the first row and column of it that are kept."""

    covering: tuple[int, int]
    corner: tuple[int, int]


def place(height: int, width: int, cut: Cut) -> Place:
    """Where an image of this size is cut.

    Sizes and the centre are rounded as torchvision's Resize and CenterCrop do, or for `adm` as in ADM's code.
    """
    h, w = cut.size
    if cut.crop == "adm":
        while height >= 2 * h and width >= 2 * w:
            height, width = height // 2, width // 2
        scale = max(h / height, w / width)
        covering = max(h, round(height * scale)), max(w, round(width * scale))
    elif h * width >= w * height:
        covering = h, max(w, h * width // height)
    else:
        covering = max(h, w * height // width), w
    down, right = covering[0] - h, covering[1] - w
    if cut.crop == "random":
        corner = int(cut.u[0] * (down + 1)), int(cut.u[1] * (right + 1))
    elif cut.crop == "adm":
        corner = down // 2, right // 2
    else:
        corner = round(down / 2), round(right / 2)
    return Place(covering, corner)


def seen_corner(height: int, width: int, cut: Cut) -> tuple[int, int]:
    """The first row and column that are kept, of an image that is mirrored those of its mirror image: what is missing
    on the left of what is seen is what a network can learn."""
    covering, (top, left) = place(height, width, cut)
    return top, covering[1] - cut.size[1] - left if cut.flip else left


def cut_out(image: Image.Image, cut: Cut) -> Tensor:
    """An RGB image as uint8 (3, *cut.size): resized (antialiased bicubic) until it just covers the size, then cut.

    `adm` halves by boxes first, while both sides stay at least twice as long.
    """
    h, w = cut.size
    (height, width), (top, left) = place(image.height, image.width, cut)
    while cut.crop == "adm" and image.height >= 2 * h and image.width >= 2 * w:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + w, top + h))
    return to_tensor(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if cut.flip else image)


def fit(image: Tensor, cut: Cut) -> Tensor:
    """The same of an image uint8 (3, H, W), or of each frame of a clip (3, T, H, W)."""
    if image.ndim == 4:
        return torch.stack([fit(frame, cut) for frame in image.unbind(1)], 1)
    return cut_out(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), cut)
