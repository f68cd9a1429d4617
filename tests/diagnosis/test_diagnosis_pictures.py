"""What is seen of images: held to closed forms on noise, steps and patterns."""

import math
from itertools import pairwise

import pytest
import torch

from pixelspace.diagnosis.pictures import colour, contrast, octaves, pattern, periods, seams, variety


def noise(n: int = 16, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_white_noise_has_neither_seams_nor_a_pattern():
    for period in (2, 4, 8, 16):
        assert abs(float(seams(noise(), period).mean()) - 1) < 0.01
        assert abs(pattern(noise(), period) - 1) < 0.1


@pytest.mark.parametrize("period", [2, 4, 8])
def test_patches_that_are_each_shifted_have_seams_by_the_ratio_of_the_deviations(period):
    shift = noise(side=64 // period, seed=1).repeat_interleave(period, 2).repeat_interleave(period, 3)
    found = float(seams(noise() + 1.5 * shift, period).mean())
    assert abs(found / math.sqrt(1 + 1.5**2) - 1) < 0.02


def test_seams_are_largest_at_the_patch_that_made_them():
    shift = noise(side=16, seed=1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = {period: float(seams(noise() + shift, period).mean()) for period in periods(64, 64)}
    assert max(found, key=found.__getitem__) == 4


def test_seams_do_not_depend_on_brightness_or_scale():
    images = noise() + noise(side=16, seed=1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(seams(images, 4), seams(127.5 * images + 60, 4))


def test_images_that_fade_to_their_edges_have_no_seams_for_it():
    fade = torch.linspace(-1, 1, 64, dtype=torch.float64).mul(math.pi / 2).cos()
    assert abs(float(seams(noise(64) * fade * fade[:, None], 16).mean()) - 1) < 0.03


def test_a_checkerboard_is_a_pattern_of_its_closed_form():
    i = torch.arange(64)
    board = 0.2 * (1.0 - 2.0 * ((i[:, None] + i) % 2))
    expected = 1 + 64 * 64 * 0.2**2 / 3
    assert abs(pattern(noise(64) + board, 2) / expected - 1) < 0.1


def test_a_pattern_is_found_at_its_period_and_not_at_one_it_does_not_repeat_with():
    tile = noise(1, 8, seed=2)[0].repeat(1, 8, 8)
    images = noise() + 0.3 * tile
    assert pattern(images, 8) > 3 > 1.2 > pattern(noise() + 0.3 * noise(1, 64, seed=3), 8)


def test_smooth_images_whose_edges_do_not_meet_have_no_pattern():
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64)
    images = (ramp + 0.5 * ramp[:, None] ** 2).expand(4, 3, 64, 64)
    assert max(pattern(images, period) for period in periods(64, 64)) < 1.3


def test_a_pattern_needs_three_whole_patches():
    with pytest.raises(ValueError, match="three whole patches of 32"):
        pattern(noise(), 32)


def test_white_noise_has_power_in_an_octave_by_how_many_frequencies_it_has():
    below = [64, 33, 17, 9, 5]  # a side, of frequencies up to each octave's highest
    expected = [(high**2 - low**2) / 64**2 for high, low in pairwise(below)]
    assert octaves(noise(256)) == pytest.approx(expected, rel=0.05)


def test_octaves_share_out_the_variance():
    found, images = octaves(noise()), noise()
    without_mean = images - images.mean((2, 3), keepdim=True)
    assert 0.98 * float(without_mean.square().mean()) < sum(found) < float(without_mean.square().mean())


def test_grey_pictures_have_no_colour_and_flat_ones_no_contrast():
    grey = noise()[:, :1].expand(-1, 3, -1, -1)
    assert colour(grey) == 0 and abs(contrast(grey) - 1) < 0.02
    flat = torch.tensor([1.0, 0.5, 0.0])[None, :, None, None].expand(4, 3, 64, 64)
    assert colour(flat) == 1 and contrast(flat) == 0


def test_the_same_picture_again_and_again_has_no_variety():
    assert variety(noise(1).expand(8, -1, -1, -1)) == 0 and abs(variety(noise(256, 8)) - 1) < 0.02
