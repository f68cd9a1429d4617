import math

import pytest
import torch

from pixelspace.data.augment import Draws, conditioning, draws, matrix, warp
from pixelspace.random import Rng

CASES = (
    *("identity", "xflip", "yflip", "scale", "rotate", "aniso", "translate", "all"),
    *("all_nonsquare", "translate_nonsquare", "all_gray"),
)


def draws_of(**given):
    numbers = {**dict.fromkeys(Draws.__dataclass_fields__, 0.0), **given}
    return Draws(**{name: torch.tensor([number], dtype=torch.float64) for name, number in numbers.items()})


def recorded(case):
    d, rate = case["draws"], case["augment_prob"]
    on = {name: d[f"{name}_do_rand"] < rate for name in ("yflip", "scale", "rot", "aniso", "trans")}
    return draws_of(
        mirror_x=d["xflip_randint"],
        mirror_y=d["yflip_randint"] * on["yflip"],
        scale=d["scale_randn"] * on["scale"],
        rotation=(2 * d["rot_rand"] - 1) * math.pi * on["rot"],
        stretch_angle=(2 * d["aniso_angle_rand"] - 1) * math.pi * on["aniso"],
        stretch=d["aniso_randn"] * on["aniso"],
        shift_x=d["trans_x_randn"] * on["trans"],
        shift_y=d["trans_y_randn"] * on["trans"],
    )


@pytest.mark.parametrize("name", CASES)
def test_matrix_conditioning_and_image_meet_the_golden(golden, golden_json, name):
    stored = golden("hdit/augment")
    case = next(case for case in golden_json("hdit/augment")["cases"] if case["name"] == name)
    drawn = recorded(case)
    image = stored[f"{name}/orig"][None]
    moves = matrix(drawn, tuple(image.shape[2:]))
    torch.testing.assert_close(moves[0].float(), stored[f"{name}/matrix"].float(), rtol=0, atol=3e-5)
    torch.testing.assert_close(conditioning(drawn)[0], stored[f"{name}/cond"].float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(warp(image, moves)[0], stored[f"{name}/out"], rtol=0, atol=2e-5)


def test_untouched_images_stay_bit_for_bit_and_are_told_nothing():
    image, none = torch.randn(1, 3, 9, 14), draws_of()
    assert torch.equal(warp(image, matrix(none, (9, 14))), image)
    assert torch.equal(conditioning(none), torch.zeros(1, 9))


@pytest.mark.parametrize(("x", "y", "dims"), [(1, 0, [3]), (0, 1, [2]), (1, 1, [2, 3])])
def test_mirrors_are_exact_and_undo_themselves(x, y, dims):
    image, moves = torch.randn(1, 3, 8, 11), matrix(draws_of(mirror_x=x, mirror_y=y), (8, 11))
    once = warp(image, moves)
    assert torch.equal(once, image.flip(dims)) and torch.equal(warp(once, moves), image)


def test_half_a_turn_is_both_mirrors():
    image = torch.randn(1, 3, 10, 14, dtype=torch.float64)
    turned = warp(image, matrix(draws_of(rotation=math.pi), (10, 14)))
    torch.testing.assert_close(turned, image.flip(2).flip(3), rtol=0, atol=1e-12)


def test_a_shift_by_whole_pixels_moves_them_and_mirrors_beyond_the_border():
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    moved = warp(image, matrix(draws_of(shift_x=2), (8, 8)))
    torch.testing.assert_close(moved[..., 2:], image[..., :-2], rtol=0, atol=1e-12)
    torch.testing.assert_close(moved[..., :2], image[..., 1:3].flip(3), rtol=0, atol=1e-12)


def test_each_image_moves_as_if_it_were_alone():
    images, drawn = torch.randn(9, 2, 7, 12), draws(Rng(1), torch.arange(9), 0.5)
    moves = matrix(drawn, (7, 12))
    alone = [warp(images[i : i + 1], moves[i : i + 1]) for i in range(9)]
    assert torch.equal(warp(images, moves), torch.cat(alone))
    assert warp(images[:0], moves[:0]).shape == (0, 2, 7, 12)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1), (3, 2)])
def test_images_far_smaller_than_their_move_stay_in_range_of_the_mirror(size):
    flat = torch.full((1, 1, *size), 0.7, dtype=torch.float64)
    moves = matrix(draws_of(scale=-9, rotation=1.1, stretch=3, stretch_angle=0.4, shift_x=30, shift_y=-17), size)
    torch.testing.assert_close(warp(flat, moves), flat, rtol=0, atol=1e-12)


def test_at_rate_zero_nothing_happens_at_all():
    drawn = draws(Rng(5), torch.arange(100), 0.0)
    assert torch.equal(matrix(drawn, (6, 9)), torch.eye(3, dtype=torch.float64).expand(100, 3, 3))
    assert not conditioning(drawn).any()


def test_draws_do_not_depend_on_the_split():
    whole, part = draws(Rng(5), torch.arange(200), 0.5), draws(Rng(5), torch.arange(100, 117), 0.5)
    for name in Draws.__dataclass_fields__:
        assert torch.equal(getattr(part, name), getattr(whole, name)[100:117])


@pytest.mark.parametrize("rate", [0.12, 1.0])
def test_each_change_comes_at_its_rate_and_is_told_whenever_it_comes(rate):
    n = 4000
    drawn = draws(Rng(5), torch.arange(n), rate)
    rates = {
        **dict.fromkeys(("scale", "rotation", "stretch", "stretch_angle", "shift_x", "shift_y"), rate),
        **{"mirror_x": 0.5, "mirror_y": rate / 2},
    }
    assert rates.keys() == Draws.__dataclass_fields__.keys()
    for name, expected in rates.items():
        share = float((getattr(drawn, name) != 0).double().mean())
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n)), name
    told = (conditioning(drawn) != 0).any(1)
    changed = (matrix(drawn, (8, 8)) != torch.eye(3, dtype=torch.float64)).flatten(1).any(1)
    assert torch.equal(told, changed)


def test_draws_have_their_distributions():
    drawn, n = draws(Rng(5), torch.arange(4000), 1.0), 4000
    for name in ("scale", "stretch", "shift_x", "shift_y"):
        values = getattr(drawn, name)
        assert abs(values.mean()) < 4 / math.sqrt(n) and abs(values.var() - 1) < 4 * math.sqrt(2 / n), name
    for name in ("rotation", "stretch_angle"):
        values = getattr(drawn, name)
        assert values.abs().max() < math.pi and abs(values.var() - math.pi**2 / 3) < 0.2, name
