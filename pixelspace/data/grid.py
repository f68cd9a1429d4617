"""Images side by side."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def grid_image(images: Tensor, columns: int, gap: int = 2, scale: int = 1) -> Image.Image:
    """uint8 images (n, 3, H, W) or (n, 1, H, W) in rows of `columns` on white, each pixel `scale` pixels wide."""
    n, channels, h, w = images.shape
    pixels = images.expand(n, 3, h, w) if channels == 1 else images[:, :3]
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1).cpu().numpy()
    h, w = h * scale, w * scale
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(pixels):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = image
    return Image.fromarray(sheet)


def save_image(image: Image.Image, path: Path) -> Path:
    """Writes a PNG that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    image.save(partial, format="PNG")
    return partial.replace(path)
