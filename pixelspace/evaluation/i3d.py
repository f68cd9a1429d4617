"""The network of FVD: Inception-v1 inflated to three dimensions, for Kinetics-400 (Carreira & Zisserman 2017;
Unterthiner et al. 2018).

Unverified: the architecture follows the paper and the public names of `i3d_pretrained_400.pt`, and has run with random
weights only. What the file's users compute with it (VideoGPT, TATS) was read: batch normalisation adds 1e-5 to the
variance, where TensorFlow's has 1e-3; zeros pad the maxima too, which after ReLU changes nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelspace.config import value
from pixelspace.errors import DataError
from pixelspace.evaluation.features import Extractor, Opened
from pixelspace.evaluation.resize import pytorch_bilinear
from pixelspace.evaluation.weights import Weights, WeightsFile, load_network, sha256_of

SIZE, MIN_FRAMES = 224, 9
WEIGHTS = WeightsFile(
    name="i3d_pretrained_400.pt",
    source="the repositories of VideoGPT (wilson1yan/VideoGPT) or TATS",
    bytes=0,
    sha256="",
    licence="Apache-2.0 in origin",
    note="StyleGAN-V's i3d_torchscript.pt is a program and is not read",
)
_MIXED = {  # widths of the six convolutions: 1x1, two of the first 3x3 branch, two of the second, after the maximum
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def padded(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """x (B, C, T, H, W) with zeros around, as TensorFlow's SAME has it: ceil(n / stride) places come of n, and of an
    odd number of zeros one more stands behind."""
    around: list[int] = []
    for length, size, step in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(0, (-(-length // step) - 1) * step + size - length)
        around = [total // 2, total - total // 2, *around]
    return F.pad(x, around)


def _max(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(padded(x, kernel, stride), kernel, stride)


class _Unit(nn.Module):
    def __init__(self, width: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(width, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-5)
        self.kernel, self.stride = (kernel, kernel, kernel), (stride, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(padded(x, self.kernel, self.stride))))


class _Mixed(nn.Module):
    def __init__(self, width: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, narrow, wide, thin, thick, pooled = widths
        self.b0 = _Unit(width, one, 1)
        self.b1a, self.b1b = _Unit(width, narrow, 1), _Unit(narrow, wide, 3)
        self.b2a, self.b2b = _Unit(width, thin, 1), _Unit(thin, thick, 3)
        self.b3b = _Unit(width, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = _max(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class _Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, 400, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class I3DNetwork(nn.Module):
    """Clips (B, 3, T, 224, 224) in [-1, 1], T of 9 or more, to logits (B, 400), their mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        width = 192
        for name, widths in _MIXED.items():
            self.add_module(name, _Mixed(width, widths))
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = _Logits()

    def forward(self, x: Tensor) -> Tensor:
        x = _max(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))  # (B, 64, T / 2, 56, 56)
        x = _max(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))  # (B, 192, T / 2, 28, 28)
        for name in _MIXED:
            if name == "Mixed_4b":
                x = _max(x, (3, 3, 3), (2, 2, 2))  # (B, 480, T / 4, 14, 14)
            if name == "Mixed_5b":
                x = _max(x, (2, 2, 2), (2, 2, 2))  # (B, 832, T / 8, 7, 7)
            x = self.get_submodule(name)(x)
        return self.logits(F.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))


def normalised(clips: Tensor) -> Tensor:
    """What the network reads of uint8 clips (B, 3, T, H, W): each frame 224 x 224, bilinear and not antialiased, the
    aspect ratio not kept; 2 v / 255 - 1."""
    frames = pytorch_bilinear(clips.transpose(1, 2).flatten(0, 1), SIZE)
    return (2 * frames / 255 - 1).unflatten(0, (len(clips), clips.shape[2])).transpose(1, 2)


@value
class I3D(Extractor):
    """I3D's view of clips, unverified."""

    @property
    def name(self) -> str:
        return "I3D Kinetics-400 (unverified), frames resize pytorch_bilinear 224"

    @property
    def outputs(self) -> Mapping[str, int]:
        return {"i3d.logits": 400}

    def open(self, weights: Weights, device: torch.device) -> Opened:
        path = weights.find(WEIGHTS)
        network = I3DNetwork().eval().requires_grad_(False)
        load_network(network, path)
        network.to(device)

        def compute(clips: Tensor) -> dict[str, Tensor]:
            if clips.ndim != 5 or clips.shape[2] < MIN_FRAMES:
                raise DataError(
                    f"I3D: expected clips (3, T, H, W) of {MIN_FRAMES} frames or more, found {tuple(clips.shape[1:])}"
                )
            # One by one: 16 frames are 150 MB in the first layers.
            return {"i3d.logits": torch.cat([network(normalised(clip.to(device))).cpu() for clip in clips.split(1)])}

        return Opened(sha256_of(path), compute)
