"""Between pixels and the space a model works in."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.random import Rng


def to_uint8(x: Tensor, truncate: bool = False) -> Tensor:
    """Pixels in [-1, 1] as 0..255, what is beyond clipped: rounded, as EDM's and StyleGAN's code does, or cut off, as
    ADM's does, which makes images darker by half a level."""
    levels = (x.float() + 1) * 127.5
    return (levels if truncate else levels.round()).clamp(0, 255).to(torch.uint8)


class Codec(ABC):
    """uint8 images (B, 3, H, W) to model space (B, channels, H / factor, W / factor) and back; pixels of clips
    (B, 3, T, H, W) too.

    On the way lies a stored form, which may be kept on disk in place of the image.
    """

    channels: int
    factor: int
    truncates: ClassVar[bool] = False

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in model space of images of `size`.

        Raises:
            UserError: a size that is no multiple of `factor`, with the next ones that are.
        """
        for name, side in zip(("height", "width"), size, strict=True):
            if side % self.factor or side < self.factor:
                below = max(side // self.factor, 1) * self.factor
                raise UserError(
                    f"image {name} {side}: this codec needs a multiple of {self.factor}; "
                    f"the next valid sizes are {below} and {below + self.factor}"
                )
        return size[0] // self.factor, size[1] // self.factor

    @abstractmethod
    def identity(self) -> str:
        """What the stored form depends on, weights included; "" where images themselves are stored."""

    @abstractmethod
    def store(self, images: Tensor) -> Tensor:
        """uint8 images to their stored form (B, ...), on the images' device."""

    @abstractmethod
    def encode(self, stored: Tensor, rng: Rng, pos: Tensor) -> Tensor:
        """float32 model space of samples at global positions `pos` (B,): what is drawn is a function of them."""

    @abstractmethod
    def pixels(self, x: Tensor) -> Tensor:
        """float32 (B, 3, H, W) in [-1, 1] and somewhat beyond."""

    def decode(self, x: Tensor, truncate: bool | None = None) -> Tensor:
        """uint8 (B, 3, H, W), see `to_uint8`; None: as the system that the codec is of has it."""
        return to_uint8(self.pixels(x), self.truncates if truncate is None else truncate)


@value
class Pixels(Codec):
    """The pixels themselves, 0..255 as [-1, 1]."""

    channels: ClassVar[int] = 3
    factor: ClassVar[int] = 1

    def identity(self) -> str:
        return ""

    def store(self, images: Tensor) -> Tensor:
        return images

    def encode(self, stored: Tensor, rng: Rng, pos: Tensor) -> Tensor:
        return stored.float() / 127.5 - 1

    def pixels(self, x: Tensor) -> Tensor:
        return x.float()
