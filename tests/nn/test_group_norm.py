import pytest
import torch
from torch import library, nn

from pixelspace.nn.group_norm import GroupNorm
from pixelspace.nn.layout import channels_last


def pair(dtype=torch.float32):
    """Ours and the library's, with the same weights."""
    ours, theirs = GroupNorm(4, 8).to(dtype), nn.GroupNorm(4, 8).to(dtype)
    for layer in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, generator=generator)
    return ours, theirs


def compiled_of(layer):
    """As the compiler sees it, but computed by PyTorch's own operators."""
    torch._dynamo.reset()
    return torch.compile(layer, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_a_compiled_network_has_the_norm_and_its_gradients_in_the_layout_given(last, frozen):
    (ours, theirs), x = pair(), torch.randn(3, 8, 5, 6)
    found = []
    for layer in (compiled_of(ours), theirs):
        layer.requires_grad_(not frozen)
        given = (channels_last(x) if last else x.clone()).requires_grad_()
        out = layer(given)
        (out * torch.arange(6.0)).sum().backward()
        found.append([out, given.grad, *(p.grad for p in layer.parameters() if not frozen)])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_the_operator_tells_the_compiler_the_truth():
    ours, _ = pair()
    x = torch.randn(2, 8, 3, 4, requires_grad=True)
    library.opcheck(torch.ops.pixelspace.group_norm.default, (x, ours.weight, ours.bias, 4, 1e-5))


def test_float64_is_compiled_to_the_same_and_its_gradients_are_right():
    ours, theirs = pair(torch.float64)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    compiled = compiled_of(ours)
    torch.testing.assert_close(compiled(x), theirs(x))
    assert torch.autograd.gradcheck(lambda x: torch.ops.pixelspace.group_norm(x, ours.weight, ours.bias, 4, 1e-5)[0], x)


def test_autocast_is_left_to_pytorch():
    (ours, theirs), x = pair(), torch.randn(2, 8, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        compiled, expected = compiled_of(ours)(x.bfloat16()), theirs(x.bfloat16())
    assert compiled.dtype == expected.dtype
    torch.testing.assert_close(compiled, expected, rtol=1e-2, atol=1e-2)
