import importlib.util

import pytest
import torch

from pixelspace.errors import ResourceError, UserError
from pixelspace.nn.attention import (
    NEIGHBORHOODS,
    cosine_scaled,
    global_attention,
    neighborhood_attention,
    neighborhood_mask,
    shifted_window_attention,
    window_mask,
)

GRIDS = [(7, 9, 7), (8, 8, 3), (16, 16, 7), (20, 13, 5), (6, 10, 5), (24, 17, 9), (9, 9, 1), (33, 8, 7)]


def qkv(h, w, dtype=torch.float64, batch=2, heads=3, dim=8):
    return [torch.randn(batch, h, w, heads, dim, dtype=dtype, requires_grad=True) for _ in range(3)]


def by_loops(q, k, v, kernel):
    b, h, w, n, e = q.shape
    out = torch.empty_like(q)
    for i in range(h):
        for j in range(w):
            top, left = min(max(i - kernel // 2, 0), h - kernel), min(max(j - kernel // 2, 0), w - kernel)
            keys = k[:, top : top + kernel, left : left + kernel].reshape(b, -1, n, e)
            values = v[:, top : top + kernel, left : left + kernel].reshape(b, -1, n, e)
            weights = torch.einsum("bne,blne->bnl", q[:, i, j], keys).softmax(-1)
            out[:, i, j] = torch.einsum("bnl,blne->bne", weights, values)
    return out


@pytest.mark.parametrize("grid", [(8, 8, 3), (6, 10, 5), (7, 9, 7)])
def test_neighborhood_masks_meet_the_golden(golden, grid):
    h, w, k = grid
    stored = golden("hdit/rope_masks")
    assert torch.equal(neighborhood_mask(h, w, k), stored[f"na_mask/{h}x{w}_k{k}"].bool())


@pytest.mark.parametrize("grid", GRIDS)
def test_the_reference_is_the_definition_in_loops(grid):
    h, w, k = grid
    args = [x.detach() for x in qkv(h, w)]
    torch.testing.assert_close(neighborhood_attention(*args, k, "reference"), by_loops(*args, k))


@pytest.mark.parametrize("grid", GRIDS)
def test_halo_tiles_equal_the_reference_with_gradients(grid):
    h, w, kernel = grid
    args = qkv(h, w)
    weight = torch.randn_like(args[0])
    results = []
    for backend in ("reference", "halo"):
        out = neighborhood_attention(*args, kernel, backend)
        results.append([out, *torch.autograd.grad((out * weight).sum(), args)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("grid", [(8, 8, 3), (16, 12, 5)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_the_reference(grid):
    h, w, kernel = grid
    args = [x.detach() for x in qkv(h, w, torch.float32, dim=16)]
    expected = neighborhood_attention(*args, kernel, "reference")
    torch.testing.assert_close(neighborhood_attention(*args, kernel, "flex"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("natten") is None, reason="natten is an extra")
@pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning")  # natten's own call
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_natten_equals_the_reference():
    args = [x.detach() for x in qkv(16, 16, torch.float32, dim=32)]
    expected = neighborhood_attention(*args, 7, "reference")
    torch.testing.assert_close(neighborhood_attention(*args, 7, "natten"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("natten") is not None, reason="natten is there")
def test_an_absent_natten_names_its_extra():
    with pytest.raises(ResourceError, match=r"pip install 'pixelspace\[natten\]'"):
        neighborhood_attention(*qkv(8, 8), 3, "natten")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["halo", "flex", "auto"])
def test_gpu_backends_equal_the_reference_with_gradients(backend):
    args = [x.detach().cuda().requires_grad_() for x in qkv(32, 32, torch.float32, dim=64)]
    results = []
    for name in ("reference", backend):
        out = neighborhood_attention(*args, 7, name)
        results.append([out, *torch.autograd.grad(out.square().sum(), args)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # TF32 kernels


def test_every_backend_is_tested():
    assert set(NEIGHBORHOODS) == {"reference", "halo", "flex", "natten"}


@pytest.mark.parametrize("kernel", [4, 9])
def test_a_kernel_that_is_even_or_too_large_is_refused(kernel):
    with pytest.raises(UserError, match=f"kernel {kernel} must be odd and fit the 8x8"):
        neighborhood_attention(*qkv(8, 8), kernel)


def test_a_neighborhood_of_the_whole_grid_is_global():
    args = qkv(7, 7)
    torch.testing.assert_close(neighborhood_attention(*args, 7), global_attention(*args))


@pytest.mark.parametrize("shift", [(0, 2, 2), (2, 2, 3)])
def test_window_masks_meet_the_golden(golden, shift):
    s, i, j = shift
    stored = golden("hdit/rope_masks")[f"shifted_window_mask/shift{s}_{i}x{j}_ws4"].bool()
    assert torch.equal(window_mask(i, j, 4, s), stored)


def test_one_window_over_the_grid_is_global():
    args = qkv(8, 8)
    torch.testing.assert_close(shifted_window_attention(*args, 8, 0), global_attention(*args))


def test_a_shifted_window_only_sees_tokens_of_its_own_side():
    q, k, v = (x.detach() for x in qkv(8, 8))
    out = shifted_window_attention(q, k, v, 4, 2)
    v2 = v.clone()
    v2[:, 0:2] += 1.0  # the first two rows share a window with rows 6, 7 after the roll, but must not be seen by them
    changed = (shifted_window_attention(q, k, v2, 4, 2) - out).abs().amax((0, 2, 3, 4))
    assert (changed[:2] > 0).all() and (changed[6:] == 0).all()


def test_a_window_that_does_not_divide_the_grid_is_refused():
    with pytest.raises(UserError, match="window 3 must divide"):
        shifted_window_attention(*qkv(8, 8), 3, 0)


@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_in_bfloat16_equal_the_fused_kernel(masked):
    q, k, v = (x.detach().float() for x in qkv(16, 16))
    way = (lambda *a: neighborhood_attention(*a, 7)) if masked else global_attention
    low = way(*(x.bfloat16() for x in (q, k, v)))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), way(q, k, v), rtol=0.1, atol=0.1)


def test_cosine_scaling_bounds_the_logits():
    q, k, _ = (x.detach() for x in qkv(4, 4))
    scale = torch.tensor([1.0, 5.0, 10.0], dtype=torch.float64)
    q, k = cosine_scaled(q, scale), cosine_scaled(k, scale)
    logits = torch.einsum("bhwne,bxyne->bnhwxy", q, k).abs().amax((0, 2, 3, 4, 5))
    assert (logits <= scale).all()
    torch.testing.assert_close((q * q).sum(-1), scale.expand(2, 4, 4, 3), rtol=1e-5, atol=0)  # eps 1e-6


def test_large_grids_need_no_square_memory():
    with torch.random.fork_rng():
        args = [torch.randn(1, 128, 128, 1, 16, requires_grad=True) for _ in range(3)]
    kept = 0

    def note(x):
        nonlocal kept
        kept = max(kept, x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        neighborhood_attention(*args, 7).sum().backward()
    assert kept < 128**4 / 50  # a dense mask or score matrix would be 128^4
