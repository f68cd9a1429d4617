"""Group norm (Wu and He 2018) of images in either layout, at the library's speed in compiled networks, too."""

from typing import Any

import torch
from torch import Tensor, library, nn

from pixelspace.nn.layout import channels_last, is_channels_last

Three = tuple[Tensor, Tensor, Tensor]
_ALL = [True, True, True]


# Operators of our own: PyTorch's compiler takes the library's apart, and on a CPU sums up channels-last groups number
# by number, at twice the time.
@library.custom_op("pixelspace::group_norm", mutates_args=())
def _normed(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Three:
    """x (B, C, H, W), normed, and the mean and inverse deviation (B, groups)."""
    b, c, h, w = x.shape
    return torch.ops.aten.native_group_norm(x, weight, bias, b, c, h * w, groups, eps)


@_normed.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Three:
    return torch.empty_like(x), x.new_empty(len(x), groups), x.new_empty(len(x), groups)


@library.custom_op("pixelspace::group_norm_backward", mutates_args=())
def _gradients(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, groups: int) -> Three:
    b, c, h, w = x.shape
    of = torch.ops.aten.native_group_norm_backward
    return of(grad, x, mean, inverse, weight, b, c, h * w, groups, _ALL)


@_gradients.register_fake
def _(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, groups: int) -> Three:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    x, weight, _, ctx.groups, _ = inputs
    ctx.save_for_backward(x, *output[1:], weight)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, mean, inverse, weight = ctx.saved_tensors
    grad = channels_last(grad) if is_channels_last(x) else grad.contiguous()
    return *_gradients(grad, x, mean, inverse, weight, ctx.groups), None, None


_normed.register_autograd(_backward, setup_context=_keep)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` of x (B, C, H, W) that hands the layout on, too: CUDA's kernel does not."""

    def forward(self, input: Tensor) -> Tensor:
        suits = input.device.type == "cpu" and input.dtype == self.weight.dtype
        # What is exported goes to those who know no operator of ours.
        compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        if suits and compiling and not torch.is_autocast_enabled("cpu"):
            return _normed(input, self.weight, self.bias, self.num_groups, self.eps)[0]
        out = super().forward(input)
        return channels_last(out) if is_channels_last(input) else out
