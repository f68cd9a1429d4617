import io

import numpy as np
import torch
from PIL import Image, ImageSequence

from pixelspace.serving.sending import file_of, preview, settings_in

SETTINGS = {"text": "Ünïcödé \u2028 <b>", "seed": 2**64 - 1, "size": [8, 4], "label": None}


def picture(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_an_image_is_a_png_of_the_same_pixels_that_holds_its_settings_and_nothing_else():
    pixels = picture(8, 4, 3)
    kind, data = file_of(pixels, SETTINGS, 8)
    image = Image.open(io.BytesIO(data))
    assert kind == "image/png" and np.array_equal(np.array(image), pixels)
    assert settings_in(data) == SETTINGS
    assert set(image.info) == {"Software", "pixelspace"}


def test_a_clip_is_an_animation_of_the_same_frames_that_holds_its_settings():
    pixels = picture(5, 16, 8, 3)
    kind, data = file_of(pixels, SETTINGS, 8)
    frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]
    assert kind == "image/webp" and np.array_equal(np.stack(frames), pixels)
    assert settings_in(data) == SETTINGS


def test_a_preview_is_small_and_has_the_shape_of_the_image():
    assert Image.open(io.BytesIO(preview(picture(64, 48, 3)))).size == (48, 64)
    assert Image.open(io.BytesIO(preview(picture(1030, 2048, 3), 256))).size == (256, 129)
    assert Image.open(io.BytesIO(preview(picture(4, 30, 20, 3)))).size == (20, 30)
