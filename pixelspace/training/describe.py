"""A recipe as a tree that people read."""

from collections.abc import Mapping

from torch import Tensor, nn

from pixelspace.growth.transfer import Report
from pixelspace.training.inherit import Plan, planned
from pixelspace.training.memory import Memory, activation_bytes, gib, predicted
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


def _line(what: str, number: str) -> str:
    return f"  {what:<42} {number:>15}"


def _inherited(report: Report, own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> list[str]:
    """How many tensors, and numbers in them, have come how."""
    ways = {
        "inherited": (report.copied, own),
        "resized": (report.resized, own),
        "fresh": (report.fresh, own),
        "unused": (report.unused, source),
    }
    return [
        _line(f"{way}, {len(names)} tensors", f"{sum(tensors[name].numel() for name in names):,}")
        for way, (names, tensors) in ways.items()
        if names
    ]


def _memory(held: Memory, stage: Stage) -> list[str]:
    micro = stage.micro or stage.batch
    average = ", EMA" if stage.ema_device == "same" else ""
    parts = {"weights": held.weights, "gradients": held.gradients, "moments": held.moments, "EMA": held.average}
    return [
        _line("activations for backward, one image", gib(held.activations / micro)),
        _line(f"training: weights, gradients, moments{average}", gib(held.total - held.activations)),
        *(_line(f"  {name}", gib(size)) for name, size in parts.items() if size),
        _line(f"and activations of {micro:,} at once", gib(held.activations)),
        _line("together", gib(held.total)),
    ]


def _stage(stage: Stage, plans: Mapping[str, Plan], memory: list[str], depth: int) -> list[str]:
    plan = plans[stage.name]
    count, height, width = _count(plan.network), *stage.size
    still = sum(plan.network.get_parameter(name).numel() for name in plan.frozen)
    h, w = stage.shape[1:]
    tokens = stage.text.length if stage.text else 0
    kept, whole = stage.objective.kept(h, w, 0.0), stage.backbone.macs(h, w, tokens=tokens)
    frames = f"{stage.backbone.tiles**2} frames of " if stage.backbone.tiles > 1 else ""
    start = f", from {stage.init.stage} ({stage.init.weights} weights)" if stage.init else ""
    lines = [
        f"stage {stage.name}: {frames}{height}x{width}, {stage.images:,} images in batches of {stage.batch:,}{start}",
        *(f"  warning: {warning}" for warning in stage.warnings),
        _line(f"network ({type(plan.network).__name__})", f"{count:,}") + " parameters",
        *_tree(plan.network, depth, "    "),
    ]
    if stage.init and plan.report:
        lines += _inherited(plan.report, plan.network.state_dict(), plans[stage.init.stage].network.state_dict())
    if still:
        lines.append(_line(f"frozen: {', '.join(stage.freeze)}", f"{still:,}"))
    lines.append(_line("forward pass of one image", f"{whole / 1e9:,.3f}") + " GMAC")
    if kept is not None:
        macs = stage.backbone.macs(h, w, kept, tokens)
        lines.append(_line(f"  of {kept} kept patches", f"{macs / 1e9:,.3f}") + " GMAC")
    return [*lines, *memory]


def describe(recipe: Recipe, depth: int = 1) -> str:
    """Stages, modules with exact parameter counts, what is inherited and frozen, GMACs and memory, one a line.

    Raises:
        UserError: what stages inherit or freeze does not fit their networks.
    """
    lines, plans = [f"{recipe.name} (seed {recipe.seed})"], planned(recipe)
    known = dict[tuple, int]()
    for stage in recipe.stages:
        network = plans[stage.name].network
        of = stage.batch if stage.objective.layout else 0  # decides which rows of a pyramid are finer ones
        kind = stage.backbone, stage.objective, stage.text, stage.shape, stage.freeze, stage.precision
        kind = *kind, stage.checkpointing, stage.micro or stage.batch, of
        if kind not in known:
            known[kind] = activation_bytes(stage, stage.micro or stage.batch, network=network)
        lines += ["", *_stage(stage, plans, _memory(predicted(stage, network, known[kind]), stage), depth)]
    return "\n".join(lines)
