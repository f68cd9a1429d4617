import pytest
import torch

from pixelspace.training.precision import float32_products


def switches():
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_what_a_stage_says_and_afterwards_as_before(tf32):
    before = switches()
    with float32_products(tf32):
        assert switches() == (("high" if tf32 else "highest"), tf32, tf32)
        with float32_products(not tf32):
            assert switches()[1:] == (not tf32, not tf32)
        assert switches()[1:] == (tf32, tf32)
    assert switches() == before
    with pytest.raises(ZeroDivisionError), float32_products(tf32):
        raise ZeroDivisionError
    assert switches() == before


def test_what_is_compiled_can_read_it():
    x = torch.randn(4, 4)
    with float32_products(True):
        product = torch.compile(lambda a: a @ a, backend="aot_eager")(x)
    torch.testing.assert_close(product, x @ x)


@pytest.mark.gpu
def test_tf32_rounds_and_float32_does_not():
    a, b = (torch.randn(512, 512, device="cuda") for _ in range(2))
    exact = a.double() @ b.double()
    errors = []
    for tf32 in (False, True):
        with float32_products(tf32):
            errors.append(float((a @ b - exact).abs().max()))
    assert errors[0] < 1e-3 < errors[1]
