"""How networks' inputs are made of pixels: each resize by its name, since another one moves FID by whole points
(Parmar et al. 2022).

All take images (B, 3, H, W) with values from 0 to 255 and give float32 (B, 3, size, size) on the same scale; those of
Pillow take uint8 only, and give whole numbers.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _between(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    at = torch.arange(size, dtype=torch.float32, device=device) * torch.tensor(length / size, dtype=torch.float32)
    low = at.floor()
    return low.long(), (low.long() + 1).clamp(max=length - 1), at - low


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear` bit for bit: pixel i is read at i in / out, with no half pixel and no
    antialiasing (ADM, TTUR, torch-fidelity)."""
    x = images.float()
    left, right, along = _between(x.shape[3], size, x.device)
    above, below, down = _between(x.shape[2], size, x.device)
    x = x[..., left] + (x[..., right] - x[..., left]) * along
    top, bottom = x[..., above, :], x[..., below, :]
    return top + (bottom - top) * down[:, None]


def clean_bicubic(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic (a = -1/2), clipped and not rounded (clean-fid, to 0.0021 of its float Pillow)."""
    return edm2_bicubic(images, size).clamp(0, 255)


def pytorch_bilinear(images: Tensor, size: int) -> Tensor:
    """Bilinear at pixels' centres, with no antialiasing (pytorch-fid, clean-fid's legacy_pytorch)."""
    return F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)


def bilinear_antialiased(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear (torchmetrics from 1.8)."""
    return F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)


def edm2_bicubic(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic, neither clipped nor rounded (EDM2's FD-DINOv2)."""
    return F.interpolate(images.float(), (size, size), mode="bicubic", align_corners=False, antialias=True)


def _by_pillow(images: Tensor, resized: Callable[[Image.Image], Image.Image]) -> Tensor:
    assert images.dtype == torch.uint8, f"Pillow resizes uint8, found {images.dtype}"
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    made = np.stack([np.asarray(resized(Image.fromarray(np.ascontiguousarray(array)))) for array in arrays])
    return torch.from_numpy(made).to(images.device).permute(0, 3, 1, 2).float()


def pil_bicubic(images: Tensor, size: int) -> Tensor:
    """Pillow's bicubic of uint8 images, the aspect ratio not kept (dgm-eval's FD-DINOv2)."""
    return _by_pillow(images, lambda image: image.resize((size, size), Image.Resampling.BICUBIC))


def cmmd_crop(images: Tensor, size: int) -> Tensor:
    """The central square, then Pillow's bicubic (CMMD)."""
    side = min(images.shape[2:])
    top, left = ((length - side) // 2 for length in images.shape[2:])
    return pil_bicubic(images[..., top : top + side, left : left + side], size)


def clip_pil(images: Tensor, size: int) -> Tensor:
    """The shorter side to `size` by Pillow's bicubic, then the centre (CLIP as transformers prepares it)."""
    short = min(images.shape[2:])
    height, width = (size * length // short for length in images.shape[2:])
    top, left = (height - size) // 2, (width - size) // 2
    x = _by_pillow(images, lambda image: image.resize((width, height), Image.Resampling.BICUBIC))
    return x[..., top : top + size, left : left + size].contiguous()


RESIZERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tf1_bilinear": tf1_bilinear,
    "clean_bicubic": clean_bicubic,
    "pytorch_bilinear": pytorch_bilinear,
    "bilinear_antialiased": bilinear_antialiased,
    "edm2_bicubic": edm2_bicubic,
    "pil_bicubic": pil_bicubic,
    "cmmd_crop": cmmd_crop,
    "clip_pil": clip_pil,
}
