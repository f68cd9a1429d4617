import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pixelspace.nn.attention import cosine_scaled
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


def heads_one_by_one(rope, qkv, scale):
    q, k, v = qkv.unbind(3)
    return rope(cosine_scaled(q, scale)), rope(cosine_scaled(k, scale)), v


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_heads_are_scaled_and_turned_with_the_gradients_of_both(dtype, near):
    rope = AxialRoPE(2, 16).to(torch.float64 if dtype == torch.float64 else torch.float32)
    qkv = torch.randn(3, 4, 5, 3, 2, 16, dtype=dtype, requires_grad=True)
    scale = torch.tensor([3.0, 10.0], dtype=rope.freqs.dtype, requires_grad=True)
    weights = torch.randn(3, 3, 4, 5, 2, 16, dtype=dtype)
    results = []
    for way in (rope.heads, lambda *given: heads_one_by_one(rope, *given)):
        found = way(qkv, scale)
        loss = sum((y * weight).sum() for y, weight in zip(found, weights, strict=True))
        results.append([*found, *torch.autograd.grad(loss, (qkv, scale))])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype and (ours - expected).abs().max() <= near * expected.abs().max()


def test_a_grid_s_angles_are_made_once_and_anew_for_other_frequencies():
    rope, other = AxialRoPE(2, 16), AxialRoPE(2, 16)
    cos, sin = rope.turns(4, 6)
    assert rope.turns(4, 6)[0] is cos and other.turns(4, 6)[1] is sin
    before = rope(torch.ones(1, 4, 6, 2, 16))
    rope.freqs.mul_(2)
    torch.testing.assert_close(rope.turns(4, 6)[0], 2 * cos**2 - 1)
    assert not torch.equal(rope(torch.ones(1, 4, 6, 2, 16)), before)
    assert rope.double().turns(4, 6)[0].dtype == torch.float64 and rope.turns(6, 4)[0].shape[:2] == (6, 4)


def test_angles_that_were_only_sketched_or_inferred_are_not_kept():
    rope = AxialRoPE(3, 24)
    with FakeTensorMode(allow_non_fake_inputs=True):
        rope.turns(5, 7)
    with torch.inference_mode():
        rope.turns(5, 7)
    x = torch.randn(1, 5, 7, 3, 3, 24, requires_grad=True)
    torch.stack(rope.heads(x, torch.ones(3))).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_network_without_numbers_or_of_inference_alone_turns_heads_too():
    assert AxialRoPE(2, 16).to("meta")(torch.randn(1, 4, 4, 2, 16, device="meta")).shape == (1, 4, 4, 2, 16)
    with torch.inference_mode():
        rope = AxialRoPE(2, 16)
        x = torch.randn(1, 4, 4, 3, 2, 16)
        torch.testing.assert_close(rope.heads(x, torch.ones(2)), heads_one_by_one(rope, x, torch.ones(2)))
