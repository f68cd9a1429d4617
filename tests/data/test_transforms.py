"""Resizing, cutting, mirroring."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixelspace.data.transforms import Cut, cut_out, fit, place, to_tensor
from tests.data.odd_images import picture

SIZES = [(8, 8), (16, 16), (61, 83), (64, 64), (24, 40), (40, 24), (150, 150), (7, 100)]


def image(width: int = 83, height: int = 61) -> torch.Tensor:
    return to_tensor(Image.fromarray(picture(width, height)))


def centred(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return fit(x, Cut(size, "center", (0.9, 0.9), False))


def test_a_tensor_holds_the_channels_first():
    x = image()
    assert x.shape == (3, 61, 83) and x.dtype == torch.uint8 and x.is_contiguous()
    assert x[:, 7, 30].tolist() == picture()[7, 30].tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", ["center", "random", "adm"])
@pytest.mark.parametrize("shape", [(83, 61), (61, 83), (1, 1), (20, 1), (64, 64)])
def test_any_image_becomes_any_size(size, crop, shape):
    x = fit(image(*shape), Cut(size, crop, (0.3, 0.8), True))
    assert x.shape == (3, *size) and x.dtype == torch.uint8 and x.is_contiguous()


@pytest.mark.parametrize("crop", ["center", "random", "adm"])
def test_an_image_of_that_size_stays_as_it_is(crop):
    assert torch.equal(fit(image(), Cut((61, 83), crop, (0.99, 0.99), False)), image())


def test_the_image_given_is_left_alone():
    x, before = image(), image()
    fit(x, Cut((61, 83), "center", (0, 0), False)).zero_()
    fit(x, Cut((61, 40), "center", (0, 0), True)).zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize(("width", "height"), [(83, 61), (61, 83), (199, 100), (100, 33), (40, 40), (5, 9)])
@pytest.mark.parametrize("side", [9, 16, 32, 64])
def test_squares_are_pillows_bicubic_of_the_shorter_side_then_the_centre(width, height, side):
    short, long = min(width, height), int(side * max(width, height) / min(width, height))
    resized = (long, side) if width > height else (side, long)
    whole = np.asarray(Image.fromarray(picture(width, height)).resize(resized, Image.Resampling.BICUBIC))
    left, top = (round((length - side) / 2) for length in resized)
    want = whole[top : top + side, left : left + side]
    assert short > 0 and np.array_equal(centred(image(width, height), (side, side)).permute(1, 2, 0).numpy(), want)


def adm(pixels: Image.Image, side: int) -> np.ndarray:
    """Dhariwal and Nichol's centre crop, in their words: halve by boxes, then bicubically, then cut."""
    while min(pixels.size) >= 2 * side:
        pixels = pixels.resize(tuple(n // 2 for n in pixels.size), Image.Resampling.BOX)
    scale = side / min(pixels.size)
    array = np.asarray(pixels.resize(tuple(round(n * scale) for n in pixels.size), Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


@pytest.mark.parametrize(("width", "height"), [(83, 61), (61, 83), (199, 100), (257, 300), (40, 40), (5, 9)])
@pytest.mark.parametrize("side", [16, 31, 64])
def test_the_adm_crop_is_that_of_its_paper_s_code(width, height, side):
    found = fit(image(width, height), Cut((side, side), "adm", (0.9, 0.9)))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), adm(Image.fromarray(picture(width, height)), side))


def plainly(pixels: Image.Image, cut: Cut) -> torch.Tensor:
    """All of the image resized, then cut, then mirrored."""
    (height, width), (top, left) = place(pixels.height, pixels.width, cut)
    while cut.crop == "adm" and min(pixels.height / cut.size[0], pixels.width / cut.size[1]) >= 2:
        pixels = pixels.resize((pixels.width // 2, pixels.height // 2), Image.Resampling.BOX)
    whole = np.array(pixels.resize((width, height), Image.Resampling.BICUBIC))
    part = whole[top : top + cut.size[0], left : left + cut.size[1]]
    return torch.from_numpy((part[:, ::-1] if cut.flip else part).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(16, 16), (61, 83), (64, 64), (40, 24), (150, 150)])
@pytest.mark.parametrize("shape", [(83, 61), (61, 83), (40, 400), (300, 97), (3, 50), (16, 17)])
@pytest.mark.parametrize("crop", ["center", "random", "adm"])
def test_what_is_cut_is_the_whole_resized_then_cut_then_mirrored(size, shape, crop):
    noise = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    for down in (0.0, 0.13, 1 - 2**-53):
        cut = Cut(size, crop, (down, 0.6), flip=down < 0.5)
        want = plainly(Image.fromarray(noise), cut)
        assert torch.equal(cut_out(Image.fromarray(noise), cut), want)
        assert torch.equal(fit(torch.from_numpy(noise).permute(2, 0, 1), cut), want)


def test_shrinking_is_antialiased():
    stripes = torch.zeros(3, 256, 256, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = centred(stripes, (32, 32)).float()
    assert (small - 127.5)[..., 1:-1].abs().max() <= 1  # without a filter it is all black or all white


def test_shrinking_keeps_the_mean():
    x = image(256, 256)
    assert (centred(x, (32, 32)).float().mean((1, 2)) - x.float().mean((1, 2))).abs().max() < 1


@pytest.mark.parametrize("size", [(61, 83), (30, 30), (90, 20)])
def test_a_flip_mirrors_the_same_cut(size):
    for crop in ("center", "random", "adm"):
        plain, flipped = (fit(image(), Cut(size, crop, (0.2, 0.7), flip)) for flip in (False, True))
        assert torch.equal(flipped, plain.flip(2))


def test_random_cuts_reach_every_place_equally_often():
    x = image(83, 61)[:, :, :70]  # 10 places for a square of 61
    found = []
    for i in range(1000):
        cut = fit(x, Cut((61, 61), "random", (0.5, (i + 0.5) / 1000), False))
        found.append(next(left for left in range(10) if torch.equal(cut, x[:, :, left : left + 61])))
    assert found == sorted(found) and np.bincount(found).tolist() == [100] * 10


def test_the_first_number_moves_the_cut_down():
    x = image(61, 83)
    for u, top in ((0.0, 0), (0.5, 11), (1 - 2**-53, 22)):
        assert torch.equal(fit(x, Cut((61, 61), "random", (u, 0.5), False)), x[:, top : top + 61])


def test_the_cut_lies_within_the_picture_and_keeps_its_shape():
    x = image(300, 100)  # x[0] is a ramp to the right, x[1] one downwards
    small = centred(x, (50, 50)).float()
    assert abs(small[0].mean() - 127) < 2 and small[0].min() > 80 and small[0].max() < 175  # the middle third
    assert small[1].min() < 5 and small[1].max() > 245  # all of the height
