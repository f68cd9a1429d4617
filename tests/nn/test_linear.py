import pytest
import torch
import torch.nn.functional as F

from pixelspace.nn.linear import Linear, linear


@pytest.fixture(autouse=True)
def _products_of_any_size_count_as_large(monkeypatch):
    monkeypatch.setattr("pixelspace.nn.linear._SMALLEST", 1)


@pytest.mark.parametrize("widths", [(128, 144), (144, 128), (128, 128), (8, 8)], ids=str)
@pytest.mark.parametrize("rows", [(3, 5), (2, 4, 6), (2, 0), (7,)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_linear_map_with_its_gradients(widths, rows, biased):
    x = torch.randn(*rows, widths[0], requires_grad=True)
    weight = torch.randn(*reversed(widths), requires_grad=True)
    given = [x, weight, torch.randn(widths[1], requires_grad=True)][: 2 + biased]
    upstream = torch.randn(*rows, widths[1])
    for way in (linear, F.linear):
        out = way(*given)
        found = [out, *torch.autograd.grad((out * upstream).sum(), given)]
        if way is linear:
            ours = found
    for expected, mine in zip(found, ours, strict=True):
        assert mine.shape == expected.shape
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_views_are_mapped_as_their_copies_are():
    layer, x = Linear(128, 144, bias=False), torch.randn(6, 128, 5)
    torch.testing.assert_close(layer(x.transpose(1, 2)), layer(x.transpose(1, 2).contiguous()))
    (found,) = torch.autograd.grad(layer(x.transpose(1, 2)).sum(), layer.weight)
    torch.testing.assert_close(found, x.sum((0, 2)).expand(144, 128), rtol=1e-4, atol=1e-4)


def test_a_frozen_map_keeps_nothing_of_its_input():
    layer, x = Linear(128, 128), torch.randn(2, 3, 128, requires_grad=True)
    layer.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y.shape) or y, lambda y: y):
        layer(x).sum().backward()
    assert x.shape not in kept and x.grad is not None


def test_the_same_product_has_the_same_bits():
    layer, x = Linear(128, 192), torch.randn(2, 256, 128)
    found = []
    for _ in range(2):
        layer.zero_grad()
        layer(x).square().sum().backward()
        found.append(layer.weight.grad.clone())
    assert torch.equal(*found)


def test_float64_and_autocast_are_left_to_pytorch():
    layer, x = Linear(128, 128), torch.randn(2, 3, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias)) and layer(x).dtype == torch.bfloat16
    layer, x = layer.double(), x.double()
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_it_compiles_into_one_graph_with_its_gradients():
    layer, x = Linear(128, 144), torch.randn(2, 5, 128)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
