import pytest
import torch

from pixelspace.nn.rope import AxialRoPE, axial_frequencies, axial_positions, rotate


@pytest.mark.parametrize("grid", [(5, 3), (6, 20), (8, 12), (8, 8)])
def test_positions_meet_the_golden(golden, grid):
    h, w = grid
    stored = golden("hdit/rope_masks")[f"pos/{h}x{w}"]
    torch.testing.assert_close(axial_positions(h, w, dtype=torch.float64), stored, rtol=0, atol=1e-14)


def test_coarser_positions_are_the_mean_of_four(golden):
    stored = golden("hdit/rope_masks")["pos_down/8x12"]
    torch.testing.assert_close(axial_positions(4, 6, dtype=torch.float64), stored, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("heads", "dim"), [(8, 128), (3, 16), (4, 32), (1, 64), (12, 64), (2, 64)])
def test_frequencies_meet_the_golden(golden, heads, dim):
    stored = golden("hdit/rope_masks")[f"freqs/d_head{dim}_heads{heads}"]
    torch.testing.assert_close(axial_frequencies(heads, dim), stored, rtol=1e-6, atol=0)


def test_rotation_meets_the_golden(golden):
    stored = golden("hdit/rope_masks")
    x, theta = stored["rope/in"], stored["rope/theta_5x3_d16_h3"]
    torch.testing.assert_close(rotate(x, theta.cos(), theta.sin()), stored["rope/out"], rtol=0, atol=1e-6)
    rope = AxialRoPE(3, 16)
    grid = x.reshape(2, 5, 3, 3, 16)
    torch.testing.assert_close(rope(grid).reshape(x.shape), stored["rope/out"], rtol=0, atol=1e-5)


def test_products_depend_on_the_difference_of_positions_alone():
    rope = AxialRoPE(2, 16).double()
    q, k = (torch.randn(16, dtype=torch.float64).expand(1, 8, 8, 2, 16) for _ in range(2))
    q, k = rope(q), rope(k)
    products = torch.einsum("bhwne,bxyne->nhwxy", q, k)
    torch.testing.assert_close(products[:, 1, 2, 3, 5], products[:, 4, 1, 6, 4])


def test_rotation_keeps_lengths_and_leaves_half_of_a_head():
    rope = AxialRoPE(2, 16)
    x = torch.randn(1, 4, 6, 2, 16)
    y = rope(x)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(y[..., 8:], x[..., 8:]) and not torch.equal(y[..., :8], x[..., :8])
