"""The work of a stage, counted: multiply-accumulates forwards and backwards, parameters, bytes of samples.

A backward pass takes twice the forward one: gradients of weights, and gradients of what enters. Frozen weights need
none of the first, and where nothing learns before them none of the second either; linear maps and convolutions are
looked at one by one. Attention has no weights, and is counted as if all its gradients were needed.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pixelspace.data.latents import Latents
from pixelspace.text.bytes import Bytes
from pixelspace.text.cache import Cached
from pixelspace.text.encoder import TextEncoder
from pixelspace.text.minilm import MiniLM
from pixelspace.text.pretrained import Pretrained
from pixelspace.training.cost import Activations, Work
from pixelspace.training.inherit import Plan, planned
from pixelspace.training.low_memory import AdamW8bit
from pixelspace.training.memory import activation_bytes, predicted
from pixelspace.training.stage import Recipe, Stage

_MOMENTS = 500  # of a stage, at which a moving mask is looked at


def _t5(width: int, hidden: int, layers: int) -> tuple[int, int]:
    weights = layers * (4 * width**2 + 3 * width * hidden)
    return weights, weights + 32128 * width


# Encoders that recipes name: weights that each token passes, and all of them.
_ENCODERS = {
    "google/flan-t5-xl": _t5(2048, 5120, 24),
    "google/t5-v1_1-xxl": _t5(4096, 10240, 24),
}
_MINILM = (6 * 12 * 384**2, 22_700_000)


def reading(text: TextEncoder | None) -> tuple[int, int] | None:
    """Multiply-accumulates of reading one caption at its full length, and bytes of the encoder; None: not known."""
    if text is None or isinstance(text, Cached | Bytes):
        return 0, 0
    if isinstance(text, MiniLM):
        return _MINILM[0] * text.length, 4 * _MINILM[1]
    if isinstance(text, Pretrained) and text.path in _ENCODERS:
        passed, weights = _ENCODERS[text.path]
        return passed * text.length, weights * (2 if text.precision == "bf16" else 4)
    return None


class _Sketch(TorchDispatchMode):
    """Says by being there that nothing is computed: layers then keep no tables of it, and read none of its numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return func(*args, **(kwargs or {}))


class Products(TorchFunctionMode):
    """Counts multiply-accumulates of linear maps and convolutions as they are called: `all` of a forward pass, and
    those that the backward pass is `spared`."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.spared = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d):
            x, weight = args[:2]
            macs = (x if func is torch.conv_transpose2d else out).numel() * weight[0].numel()
            self.all += macs
            if not weight.requires_grad:
                self.spared += macs * (1 if x.requires_grad else 2)
        return out


def products(stage: Stage, network: nn.Module) -> Products:
    """Of one image's forward pass through the stage's network on the meta device, where nothing is computed."""

    def blank(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, (height, width) = blank(1, *stage.shape), stage.shape[1:]
    layout, count = stage.objective.layout, stage.objective.kept(height, width, 0.0)
    pair = blank(1, 2, dtype=torch.int64)
    cond = {"label": blank(1, dtype=torch.int64), "size": pair, "corner": pair}
    if stage.text is not None and stage.backbone.text_widths is not None:
        (tokens, pooled), length = stage.backbone.text_widths, stage.text.length
        mask = blank(1, length, dtype=torch.bool)
        cond |= {"text": blank(1, length, tokens), "text_mask": mask, "pooled": blank(1, pooled)}
    keep = {} if count is None else {"keep": blank(1, count, dtype=torch.int64)}
    with _Sketch(), Products() as found:
        network(layout.pool(x) if layout and len(layout.factors) > 1 else x, blank(1), cond, **keep)
    return found


def _macs(stage: Stage) -> list[int]:
    """Multiply-accumulates of one image's forward pass at moments of the stage: a mask may move."""
    _, height, width = stage.shape
    tokens = stage.text.length if stage.text else 0
    kept = [stage.objective.kept(height, width, (i + 0.5) / _MOMENTS) for i in range(_MOMENTS)]
    macs = {count: stage.backbone.macs(height, width, count, tokens) for count in set(kept)}
    return [macs[count] for count in kept]


def forward_macs(stage: Stage) -> float:
    """Their mean over the stage."""
    return sum(_macs(stage)) / _MOMENTS


def sample_bytes(stage: Stage) -> int:
    """What loaders hand over of one sample: pixels of a byte each, or a latent's moments, and stored embeddings."""
    if isinstance(stage.data.source, Latents):
        image = 4 * 2 * math.prod(stage.shape)
    else:
        image = 3 * math.prod(stage.size) * stage.data.source.frames
    stored = isinstance(stage.text, Cached) and stage.backbone.text_widths
    return image + (2 * stage.text.length * stored[0] if stage.text and stored else 0)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _gathered(network: nn.Module) -> int:
    """Parameters that are whole at once where units are sharded: those in no unit, and of two units, the one that is
    computed with and the next: at most the two largest."""
    sizes = [_count(unit) for unit in network.units()]  # type: ignore[operator]
    return _count(network) - sum(sizes) + sum(sorted(sizes)[-2:])


def work_of(stage: Stage, plan: Plan) -> Work:
    """What training of the stage takes, its network as it was planned."""
    forward = forward_macs(stage)
    read = reading(stage.text)
    missing = [f"its text encoder ({stage.text})"] if read is None else []
    if stage.codec.factor > 1 and not isinstance(stage.data.source, Latents):
        missing.append(f"encoding of images ({type(stage.codec).__name__}; see `pixelspace encode`)")
    if stage.reduction == "exact":
        missing.append("what reduction 'exact' adds to traffic")
    held = predicted(stage, plan.network, activations=0)
    learnt = sum(parameter.numel() for parameter in plan.network.parameters() if parameter.requires_grad)
    return Work(
        name=stage.name,
        batch=stage.batch,
        lanes=stage.shared_lanes,
        images=stage.images,
        save_images=stage.save_images,
        keep_every=stage.keep_every,
        precision="tf32" if stage.precision == "fp32" and stage.tf32 else stage.precision,
        parameters=_count(plan.network),
        learnt=learnt,
        gathered=_gathered(plan.network),
        state_bytes=held.total,
        checkpoint_bytes=2 * sum(one.nbytes for one in plan.network.state_dict().values()) + held.moments,
        forward=forward,
        backward=2 * forward - (products(stage, plan.network).spared if plan.frozen else 0),
        reading=read[0] if read else 0,
        reading_bytes=read[1] if read else 0,
        sample_bytes=sample_bytes(stage),
        uncounted=" and ".join(missing),
        shardable=stage.reduction == "fast"
        and stage.ema_device == "same"
        and not isinstance(stage.optimizer, AdamW8bit),
    )


def works(recipe: Recipe) -> dict[str, tuple[Work, Activations]]:
    """By stage, its work, and what is kept for its backward pass, which is found when it is asked for.

    Raises:
        UserError: what stages inherit or freeze does not fit their networks.
    """
    plans, known = planned(recipe), dict[tuple, tuple[int, int]]()

    def activations(stage: Stage, checkpointing: bool) -> tuple[int, int]:
        own, network = replace(stage, checkpointing=checkpointing), plans[stage.name].network
        of = stage.batch if stage.objective.layout else 0  # decides which rows of a pyramid are finer ones
        decides = own.backbone, own.objective, own.text, own.shape, own.freeze, own.precision, checkpointing, of
        if decides not in known:
            macs = _macs(stage)
            with _Sketch():
                one, two = (activation_bytes(own, batch, network=network) for batch in (1, 2))
            most = max(macs) / macs[0]  # more patches later keep more
            known[decides] = round(most * one), round(most * (two - one))
        return known[decides]

    return {
        stage.name: (work_of(stage, plans[stage.name]), lambda on, stage=stage: activations(stage, on))
        for stage in recipe.stages
    }
