import io

import torch
from PIL import Image

from pixelspace.serving.preview import preview


def picture(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_a_preview_is_small_and_has_the_shape_of_the_image():
    assert Image.open(io.BytesIO(preview(picture(64, 48, 3)))).size == (48, 64)
    assert Image.open(io.BytesIO(preview(picture(1030, 2048, 3), 256))).size == (256, 129)
    assert Image.open(io.BytesIO(preview(picture(4, 30, 20, 3)))).size == (20, 30)
