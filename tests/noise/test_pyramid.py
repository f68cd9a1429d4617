import pytest
import torch
import torch.nn.functional as F

from pixelspace.errors import UserError
from pixelspace.nn.frames import as_clip, as_image
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid, ask, join
from pixelspace.noise.tables import SquaredCosine, shifted

PYRAMIDS = [Pyramid((1,)), Pyramid((1, 4)), Pyramid((1, 2, 8), power=2.0), Pyramid((1, 4), power=2.0, divided=True)]
CLIPS = Pyramid((1, 2, 8), power=2.0, tiles=4)  # 16 frames, 16 of half the size, one of half the size


@pytest.mark.parametrize(("factors", "power"), [((1, 4), 1.0), ((1, 4, 16), 2.0)])
def test_a_level_s_sigma_is_that_of_the_original_s_shifted_table(factors, power):
    table, pyramid = SquaredCosine(), Pyramid(factors, power)
    for factor, sigma in zip(factors, pyramid.sigmas(table.sigmas), strict=True):
        gammas = shifted(table.gammas, (factors[-1] / factor) ** power)
        torch.testing.assert_close(1 / (1 + sigma**2), gammas.double(), rtol=2e-6, atol=0)


def test_levels_are_means_over_blocks_of_the_image():
    x = torch.randn(2, 3, 16, 32, dtype=torch.float64)
    levels = Pyramid((1, 2, 8)).pool(x)
    for level, factor in zip(levels, (1, 2, 8), strict=True):
        torch.testing.assert_close(level, x.unfold(2, factor, factor).unfold(3, factor, factor).mean((-1, -2)))


@pytest.mark.parametrize("pyramid", [*PYRAMIDS, CLIPS], ids=repr)
def test_splitting_a_row_undoes_joining_levels(pyramid):
    levels = pyramid.pool(torch.randn(2, 3, 8, 16))
    assert [tuple(level.shape[1:]) for level in levels] == pyramid.shapes((3, 8, 16))
    for found, level in zip(pyramid.split(join(levels), (3, 8, 16)), levels, strict=True):
        assert torch.equal(found, level)


def test_levels_of_a_clip_are_its_frames_smaller_and_the_first_of_them():
    clip = torch.randn(2, 3, 16, 4, 6, dtype=torch.float64)
    whole, small, first = CLIPS.pool(as_image(clip, 4))
    frames = as_clip(small, 4)
    for t in range(16):
        torch.testing.assert_close(frames[:, :, t], F.avg_pool2d(clip[:, :, t], 2))
    assert torch.equal(as_clip(whole, 4), clip) and torch.equal(first, frames[:, :, 0])


def test_frames_are_as_noisy_as_an_image_of_their_size():
    image = Pyramid((1, 2), power=2.0)
    assert CLIPS.k == (*image.k, 1.0) and CLIPS.means == (*image.factors, 2)
    assert Pyramid((1, 4), tiles=4).k == (1.0, 1.0)
    sigma = torch.tensor([0.1, 3.0])
    for found, expected in zip(CLIPS.sigmas(sigma), [*image.sigmas(sigma), sigma], strict=True):
        assert torch.equal(found, expected)


def test_a_network_sees_unit_variance_at_every_level_and_one_time():
    pyramid, process = Pyramid((1, 4), power=2.0), Process(VPV())
    sigma = torch.tensor([0.1, 1.0, 10.0])
    x0, noise = torch.randn(2, 3, 1, 256, 256)
    levels = [process.corrupt(x0, noise, s) for s in pyramid.sigmas(sigma)]
    inputs, c_noise = pyramid.inputs(process, levels, sigma)
    assert torch.equal(c_noise, sigma.log() / 4)
    for level in inputs:
        torch.testing.assert_close(level.flatten(1).std(1), torch.ones(3), rtol=0.02, atol=0)


def test_a_divided_level_is_as_noisy_as_one_whose_noise_is_larger():
    plain, divided = Pyramid((1, 4), power=2.0), Pyramid((1, 4), power=2.0, divided=True)
    process, sigma, (x0, noise) = Process(VPV()), torch.tensor([0.5]), torch.randn(2, 1, 3, 8, 8)
    whole = process.corrupt(x0, noise, plain.sigmas(sigma)[0])
    small = process.corrupt(x0 * divided.seen[0] / divided.k[0], noise, divided.sigmas(sigma)[0])
    torch.testing.assert_close(small, whole / 4)


def test_a_level_may_hold_the_first_samples_only():
    pyramid, process, sigma = Pyramid((1, 2)), Process(VPV()), torch.tensor([0.5, 1.0, 2.0])
    x = torch.randn(3, 3, 4, 4)
    for rows in range(4):
        (fine, coarse), c_noise = pyramid.inputs(process, [x[:rows], F.avg_pool2d(x, 2)], sigma)
        expected, _ = process.inputs(x, pyramid.sigmas(sigma)[0])
        assert torch.equal(fine, expected[:rows]) and len(coarse) == len(c_noise) == 3


def test_a_single_level_is_asked_of_a_plain_network():
    x = torch.randn(2, 3, 4, 4)
    (out,) = ask(lambda x, c_noise, cond: x * 2, [x], torch.zeros(2), {})
    assert torch.equal(out, 2 * x)


def test_an_image_that_the_levels_do_not_divide_is_refused_with_the_nearest_size():
    with pytest.raises(UserError, match=r"size 30 x 64: .*multiples of 8; the nearest is 32 x 64"):
        Pyramid((1, 2, 8)).pool(torch.zeros(1, 3, 30, 64))


@pytest.mark.parametrize("factors", [(), (4, 1), (1, 1), (1, 4, 6), (2, 4)])
def test_factors_that_are_no_pyramid_are_refused(factors):
    with pytest.raises(ValueError, match="must begin with 1"):
        Pyramid(factors)


@pytest.mark.parametrize(("factors", "tiles"), [((1,), 4), ((1, 4), 2), ((1, 2, 4), 4), ((1, 4, 8), 4), ((1, 2), 0)])
def test_a_grid_of_frames_that_the_last_step_does_not_leave_one_of_is_refused(factors, tiles):
    with pytest.raises(ValueError, match=f"of {tiles} x {tiles} frames the coarsest level is one"):
        Pyramid(factors, tiles=tiles)


def test_a_negative_power_is_refused():
    with pytest.raises(ValueError, match="power cannot be negative"):
        Pyramid(power=-1.0)
