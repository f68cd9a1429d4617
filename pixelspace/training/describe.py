"""A recipe as a tree that people read."""

import torch
from torch import nn

from pixelspace.training.inherit import planned
from pixelspace.training.memory import activation_bytes
from pixelspace.training.stage import Recipe, Stage


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _tree(module: nn.Module, depth: int, indent: str) -> list[str]:
    lines = []
    for name, child in module.named_children():
        if count := _count(child):
            lines.append(f"{indent}{name:<{44 - len(indent)}} {count:>15,}")
            lines += _tree(child, depth - 1, indent + "  ") if depth > 1 else []
    return lines


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _stage(stage: Stage, frozen: tuple[str, ...], depth: int) -> list[str]:
    with torch.device("meta"):
        network = stage.backbone.build()
    still = sum(network.get_parameter(name).numel() for name in frozen)
    count, height, width = _count(network), *stage.size
    micro = stage.micro or stage.batch
    one = activation_bytes(stage, 1)
    each = activation_bytes(stage, 2) - one  # what is saved once, as weights in bfloat16, does not grow with images
    h, w = stage.shape[1:]
    tokens = stage.text.length if stage.text else 0
    kept, whole = stage.objective.kept(h, w, 0.0), stage.backbone.macs(h, w, tokens=tokens)
    start = f", from {stage.init.stage} ({stage.init.weights} weights)" if stage.init else ""
    return [
        f"stage {stage.name}: {height}x{width}, {stage.images:,} images in batches of {stage.batch:,}{start}",
        f"  {'network (' + type(network).__name__ + ')':<42} {count:>15,} parameters",
        *_tree(network, depth, "    "),
        *([f"  {'of which frozen, by ' + ', '.join(stage.freeze):<42} {still:>15,}"] if still else []),
        f"  {'forward pass of one image':<42} {whole / 1e9:>15,.3f} GMAC",
        *(
            []
            if kept is None
            else [f"  {f'  of {kept} kept patches':<42} {stage.backbone.macs(h, w, kept, tokens) / 1e9:>15,.3f} GMAC"]
        ),
        f"  {'activations for backward, one image':<42} {_gib(each):>15}",
        f"  {'training: weights, gradients, moments, EMA':<42} {_gib(4 * (5 * count - 4 * still)):>15}",
        f"  {f'and activations of {micro:,} at once':<42} {_gib(one + each * (micro - 1)):>15}",
    ]


def describe(recipe: Recipe, depth: int = 1) -> str:
    """Stages, modules with exact parameter counts, GMACs and memory, one a line.

    Raises:
        UserError: what stages inherit or freeze does not fit their networks.
    """
    lines, plans = [f"{recipe.name} (seed {recipe.seed})"], planned(recipe)
    for stage in recipe.stages:
        lines += ["", *_stage(stage, plans[stage.name].frozen, depth)]
    return "\n".join(lines)
