import pytest
import torch
import torch.nn.functional as F

from pixelspace.nn.embed import FourierFeatures
from pixelspace.nn.mlp import FeedForward, gated
from pixelspace.nn.norm import AdaRMSNorm, RMSNorm, rms_norm
from pixelspace.nn.resample import TokenMerge, TokenSplit, TokenSplitSkip


def test_rms_norm_gives_unit_mean_square():
    x = 7 * torch.randn(4, 5, 64, dtype=torch.float64)
    torch.testing.assert_close(RMSNorm(64)(x).square().mean(-1), torch.ones(4, 5, dtype=torch.float64))


def test_rms_norm_keeps_the_dtype_and_computes_in_float32():
    x, scale = torch.randn(8, 64), torch.rand(64)
    low = rms_norm(x.bfloat16(), scale)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), rms_norm(x, scale), rtol=2e-2, atol=2e-2)


def test_the_adaptive_norm_starts_as_the_plain_one():
    x, cond = torch.randn(2, 3, 3, 16), torch.randn(2, 8)
    torch.testing.assert_close(AdaRMSNorm(16, 8)(x, cond), RMSNorm(16)(x))


def test_feed_forward_starts_as_identity():
    x = torch.randn(2, 3, 3, 16)
    assert torch.equal(FeedForward(RMSNorm(16), 16, 48, 0.0)(x), x)


def test_split_undoes_merge_where_the_weights_do():
    merge, split = TokenMerge(3, 24, (2, 4)), TokenSplit(24, 3, (2, 4))
    split.proj.weight.data = torch.linalg.pinv(merge.proj.weight.data)
    x = torch.randn(2, 8, 8, 3)
    torch.testing.assert_close(split(merge(x)), x, rtol=1e-4, atol=1e-4)


def test_a_factor_of_zero_keeps_the_skip_and_one_takes_the_split():
    layer, x, skip = TokenSplitSkip(8, 4), torch.randn(1, 2, 2, 8), torch.randn(1, 4, 4, 4)
    layer.fac.data.fill_(0.0)
    torch.testing.assert_close(layer(x, skip), skip)
    layer.fac.data.fill_(1.0)
    torch.testing.assert_close(layer(x, skip), layer(x, torch.zeros_like(skip)))


def test_fourier_features_are_cosines_then_sines_and_unrounded_under_autocast():
    layer, x = FourierFeatures(2, 8), torch.randn(3, 2)
    phase = 2 * torch.pi * x @ layer.weight.T
    torch.testing.assert_close(layer(x), torch.cat([phase.cos(), phase.sin()], -1), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x).float())
        torch.testing.assert_close(layer(x), torch.cat([phase.cos(), phase.sin()], -1), rtol=1e-5, atol=1e-5)


def by_autograd(x, scale):
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = scale.reshape(-1, *(1,) * (x.ndim - 2), x.shape[-1]) if scale.ndim > 1 else scale
    return (x.to(wide) * scale.to(wide) * (x.to(wide).square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize(
    "shapes", [((3, 4, 5, 16), (3, 16)), ((3, 16), (16,)), ((2, 7, 16), (16,)), ((0, 4, 16), (16,))]
)
def test_the_norm_has_the_gradients_of_its_formula(dtype, near, shapes):
    x, scale, weight = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in (*shapes, shapes[0]))
    results = []
    for way in (rms_norm, by_autograd):
        out = way(x, scale)
        results.append([out, *torch.autograd.grad((out * weight).sum(), (x, scale))])
    for ours, expected in zip(*results, strict=True):
        assert ours.shape == expected.shape and ours.dtype == expected.dtype
        assert not ours.numel() or (ours - expected).abs().max() <= near * expected.abs().max()


def test_the_gate_has_the_gradients_of_its_formula():
    x = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    a, gate = x.chunk(2, -1)
    assert torch.equal(gated(x), a * F.gelu(gate))
    assert torch.autograd.gradcheck(gated, x)


def test_norm_and_gate_keep_their_input_alone():
    x, scale, kept = torch.randn(2, 50, 16, requires_grad=True), torch.ones(16), set()
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.add(y.untyped_storage().data_ptr()) or y, lambda y: y):
        out = gated(rms_norm(x, scale))
        assert x.untyped_storage().data_ptr() in kept and len(kept) == 4  # and scale, 1 / rms, and what the gate sees
    assert out.shape == (2, 50, 8)
