"""Between pixels and the space a model works in."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pixelspace.config import value


class Codec(ABC):
    """uint8 images (B, C, H, W) to model space and back."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """float32 model space."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W), values out of range clipped."""


@value
class Pixels(Codec):
    """The pixels themselves, 0..255 as [-1, 1]."""

    def encode(self, images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
