"""Linear maps of tokens by the quicker of PyTorch's two matrix libraries.

In float32 on a CPU PyTorch multiplies with MKL, which on AMD's processors leaves AVX-512 unused and half of their speed
with it; oneDNN, in the same PyTorch, does not. Only rounding differs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

_HERE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_SMALLEST = 1 << 22  # multiply-accumulates: of fewer a call costs more than it saves


# An operator of our own: of the library's PyTorch's compiler thinks that its weights never change.
@library.custom_op("pixelspace::linear", mutates_args=())
def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x if weight.requires_grad else None, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias = ctx.needs_input_grad
    grad = grad.contiguous()
    rows = grad.flatten(0, -2)
    along = None
    if to_weight:  # the library copies its first factor: let it be the smaller one
        x, (out, inner) = x.flatten(0, -2), weight.shape
        along = _product(x.t(), rows.t(), None).t() if inner <= out else _product(rows.t(), x.t(), None)
    return _product(grad, weight.t(), None) if to_x else None, along, rows.sum(0) if to_bias else None


_product.register_autograd(_gradients, setup_context=_keep)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., in) and weight (out, in) to (..., out)."""
    suits = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.ndim > 2
    if torch.compiler.is_exporting():  # what is handed on knows PyTorch's operators alone, and any batch
        return F.linear(x, weight, bias)
    if _HERE and suits and x.numel() * len(weight) >= _SMALLEST and not torch.is_autocast_enabled("cpu"):
        return _product(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
