"""The network of FID: TensorFlow's `inception-2015-12-05` (Szegedy et al. 2016), as ported for pytorch-fid.

It is not torchvision's Inception v3: it was trained otherwise, has 1008 outputs, its averages leave padding out, and
its last block has a maximum in place of an average.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelspace.config import value
from pixelspace.evaluation.features import Extractor, Opened, a_few_at_once
from pixelspace.evaluation.resize import RESIZERS
from pixelspace.evaluation.weights import Weights, WeightsFile, load_network, sha256_of

SIZE = 299
WEIGHTS = WeightsFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    source="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    bytes=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    licence="Apache-2.0",
    note="torch-fidelity's weights-inception-2015-12-05-6726825d.pth is the same file; "
    "NVIDIA's inception-2015-12-05.pt and .pkl are programs and are not read",
)
_RESIZES = {
    "tf1": "tf1_bilinear",
    "clean": "clean_bicubic",
    "pytorch": "pytorch_bilinear",
    "antialiased": "bilinear_antialiased",
}


class _Unit(nn.Module):
    def __init__(self, width: int, out: int, kernel: tuple[int, int], stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        around = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(width, out, kernel, stride, around, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _max(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


class _BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, average."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(width, 64, (1, 1))
        self.branch5x5_1, self.branch5x5_2 = _Unit(width, 48, (1, 1)), _Unit(48, 64, (5, 5))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Unit(width, 64, (1, 1)), _Unit(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Unit(96, 96, (3, 3))
        self.branch_pool = _Unit(width, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean(x))], 1)


class _BlockB(nn.Module):
    """35 x 35 to 17 x 17: 3x3, two 3x3, maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = _Unit(288, 384, (3, 3), 2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Unit(288, 64, (1, 1)), _Unit(64, 96, (3, 3))
        self.branch3x3dbl_3 = _Unit(96, 96, (3, 3), 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _max(x)], 1)


class _BlockC(nn.Module):
    """17 x 17: 1x1, 7x7 in two parts, two 7x7 in four, average."""

    def __init__(self, mid: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(768, 192, (1, 1))
        self.branch7x7_1, self.branch7x7_2 = _Unit(768, mid, (1, 1)), _Unit(mid, mid, (1, 7))
        self.branch7x7_3 = _Unit(mid, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Unit(768, mid, (1, 1)), _Unit(mid, mid, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Unit(mid, mid, (1, 7)), _Unit(mid, mid, (7, 1))
        self.branch7x7dbl_5 = _Unit(mid, 192, (1, 7))
        self.branch_pool = _Unit(768, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean(x))], 1)


class _BlockD(nn.Module):
    """17 x 17 to 8 x 8: 3x3, 7x7 then 3x3, maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Unit(768, 192, (1, 1)), _Unit(192, 320, (3, 3), 2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Unit(768, 192, (1, 1)), _Unit(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = _Unit(192, 192, (7, 1)), _Unit(192, 192, (3, 3), 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, _max(x)], 1)


class _BlockE(nn.Module):
    """8 x 8: 1x1, a fork of 1x3 and 3x1, 3x3 and such a fork, average or maximum."""

    def __init__(self, width: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = _Unit(width, 320, (1, 1))
        self.branch3x3_1 = _Unit(width, 384, (1, 1))
        self.branch3x3_2a, self.branch3x3_2b = _Unit(384, 384, (1, 3)), _Unit(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Unit(width, 448, (1, 1)), _Unit(448, 384, (3, 3))
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Unit(384, 384, (1, 3)), _Unit(384, 384, (3, 1))
        self.branch_pool = _Unit(width, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else _mean(x)
        forks = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        forks += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(pooled)], 1)


class InceptionNetwork(nn.Module):
    """Images (B, 3, 299, 299) in [-1, 1] to `pool` (B, 2048), `spatial` (B, 2023) and `logits` (B, 1008).

    `spatial` is the first 7 channels of Mixed_6d's 1x1 branch, its 17 x 17 places first (sFID, Nash et al. 2021).
    `logits` lack the bias, as IS has them. Parameters have the names of pytorch-fid's file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, (3, 3), 2, pad=False)
        self.Conv2d_2a_3x3 = _Unit(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = _Unit(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Unit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Unit(80, 192, (3, 3), pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _BlockA(192, 32), _BlockA(256, 64), _BlockA(288, 64)
        self.Mixed_6a, self.Mixed_6b = _BlockB(), _BlockC(128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _BlockC(160), _BlockC(160), _BlockC(192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _BlockD(), _BlockE(1280, False), _BlockE(2048, True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = _max(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))  # (B, 64, 73, 73)
        x = _max(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # (B, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # (B, 768, 17, 17), the 1x1 branch first
        spatial = x[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # (B, 2048, 8, 8)
        pool = x.mean((2, 3))
        return {"pool": pool, "spatial": spatial, "logits": F.linear(pool, self.fc.weight)}


@value
class Inception(Extractor):
    """FID's view of images, by one of its resizes to 299 x 299.

    `tf1` is that of ADM, TTUR and torch-fidelity; `clean` of clean-fid; `pytorch` of pytorch-fid, whose scale is off by
    half a level too; `antialiased` of torchmetrics from 1.8.
    """

    resize: Literal["tf1", "clean", "pytorch", "antialiased"] = "tf1"

    @property
    def name(self) -> str:
        return f"Inception-2015-12-05, resize {self.resize}"

    @property
    def outputs(self) -> Mapping[str, int]:
        return {"inception.pool": 2048, "inception.spatial": 2023, "inception.logits": 1008}

    def normalised(self, images: Tensor) -> Tensor:
        """What the network reads of uint8 images (B, 3, H, W)."""
        x = RESIZERS[_RESIZES[self.resize]](images, SIZE)
        return (x - 127.5) / 127.5 if self.resize == "pytorch" else (x - 128) / 128

    def open(self, weights: Weights, device: torch.device) -> Opened:
        path = weights.find(WEIGHTS)
        network = InceptionNetwork().eval().requires_grad_(False)
        load_network(network, path)
        network.to(device)

        def compute(images: Tensor) -> dict[str, Tensor]:
            found = network(self.normalised(images.to(device)))
            return {f"inception.{of}": rows.cpu() for of, rows in found.items()}

        return Opened(sha256_of(path), a_few_at_once(compute, device))
