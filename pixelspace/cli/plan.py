"""The command that says on paper what training a recipe takes: see `training.cost`."""

import dataclasses
import json as json_format
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tyro.conf import Positional

from pixelspace.cli.given import Settings, recipe_of
from pixelspace.errors import UserError

if TYPE_CHECKING:
    from pixelspace.training.cost import Cost, Layout, Machine, Saving
    from pixelspace.training.stage import Stage

_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NUMBER = r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([kKMGTP]?)(i?)"
_BYTES, _RATE, _FLOPS = ("(B)?", "80GB, 40GiB or 80e9"), ("(B(/s)?)?", "25GB/s or 25e9"), ("(FLOP(S|/s)?)?", "312e12")
_MEANING = {"none": "copies (DDP)", "node": "shared in a node", "full": "shared by all (FSDP2)"}


def number_of(flag: str, text: str | None, unit: tuple[str, str]) -> float | None:
    """A number with a prefix, powers of 1000 (k, M, G, T, P) or of 1024 (Ki, Mi, ...), and a unit that may be left out,
    given as a pattern and as examples; None for None.

    Raises:
        UserError: naming the flag, for anything else.
    """
    if text is None:
        return None
    pattern, examples = unit
    found = re.fullmatch(_NUMBER + pattern, text.strip())
    if found is None or (found[3] and not found[2]):
        raise UserError(f"--{flag}: cannot read {text!r}; write it like {examples}")
    return float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]]


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.1f} ms"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _line(what: str, said: str) -> str:
    return f"  {what:<41} {said}"


def _tried(one: "Layout", machine: "Machine", chosen: bool) -> str:
    room, rounds = _bytes(machine.room), f"{one.accumulation} x " if one.accumulation > 1 else ""
    said = f"{rounds}{one.micro:,} at once, {_bytes(one.bytes)} of {room}, {_time(one.step)} a step"
    if not one.micro:
        said = f"no room: takes at least {_bytes(one.bytes)} of {room}"
    again = ", checkpointed" if one.checkpointing else ""
    return _line(f"{one.sharding}: {_MEANING[one.sharding]}{again}", f"{said}{' <-' if chosen else ''}")


def _saved(saving: "Saving", fails: bool) -> str:
    to = "writing and failures" if fails else "writing"
    return f"every {saving.images:,} images ({_time(saving.interval)}): {saving.lost:.2%} of the time goes to {to}"


def _passed(seconds: float, device_days: float, price: float) -> str:
    money = f", cost {price:,.0f}" if price else ""
    shown = f"{device_days:,.1f}" if device_days >= 1 else f"{device_days:.2g}"
    return f"{_time(seconds)}, {shown} device-days{money}"


def _stage(stage: "Stage", number: int, cost: "Cost", machine: "Machine") -> Iterator[str]:
    work, chosen = cost.work, cost.chosen
    height, width = stage.size
    yield f"stage {work.name}: {work.steps:,} steps of {work.batch:,} images, {height}x{width}, {work.precision}"
    for one in cost.layouts:
        yield _tried(one, machine, one is chosen)
    yield _line("arithmetic of training on one image", f"{work.flops(chosen.checkpointing) / 1e9:,.6g} GFLOP")
    if work.uncounted:
        yield _line("  not counted", work.uncounted)
    waits = f"waits {_time(chosen.step - chosen.compute)}" if chosen.step > chosen.compute else "waits for none of it"
    parts = f"{_time(chosen.compute)} of arithmetic, {_time(chosen.traffic)} of traffic, {waits}"
    yield _line("step", f"{_time(chosen.step)}: {parts}")
    yield _line("loaders", f"{cost.images_per_second:,.0f} images/s, {_bytes(cost.bytes_per_second)}/s")
    kept = f"{cost.kept:,} kept: {_bytes(cost.kept_bytes)}"
    yield _line("a checkpoint", f"{_bytes(work.checkpoint_bytes)}, {_time(cost.write_seconds)} to write; {kept}")
    yield _line("saved", _saved(cost.saving, machine.mtbf > 0))
    if cost.best:
        yield _line("  best saved (Young, Daly)", _saved(cost.best, True))
    yield _line("in all", _passed(cost.seconds, cost.device_days, cost.price))
    shard = "" if chosen.sharding == "none" else f"--shard {chosen.sharding} "
    again = str(chosen.checkpointing).lower()
    yield _line("settings", f"{shard}--set stages.{number}.micro={chosen.micro} stages.{number}.checkpointing={again}")


def _machine(machine: "Machine") -> Iterator[str]:
    nodes = f", {machine.per_node} to a node" if machine.devices > machine.per_node else ""
    tf32, fp32 = (machine.peak(precision) / 1e12 for precision in ("tf32", "fp32"))
    peaks = f"{machine.flops / 1e12:g} TFLOP/s each ({tf32:g} in TF32, {fp32:g} in float32)"
    peak = f"{_bytes(machine.memory)} and {peaks}"
    yield f"{machine.devices:,} devices{nodes}: {peak}"
    yield _line("taken for granted", f"{machine.efficiency:.0%} of the peak; {machine.spare:.0%} of memory left free")
    within = f"{_bytes(machine.bandwidth)}/s between nodes, {_bytes(machine.node_bandwidth)}/s within one"
    yield _line("traffic out of a device", f"{within}; behind {machine.overlap:.0%} of the arithmetic it is free")


def plan(
    recipe: Positional[str],
    *,
    devices: int,
    memory: str,
    flops: str,
    settings: Settings = (),
    data: str | None = None,
    text: str | None = None,
    fp32_flops: str | None = None,
    efficiency: float | None = None,
    per_node: int | None = None,
    bandwidth: str | None = None,
    node_bandwidth: str | None = None,
    overlap: float | None = None,
    write: str | None = None,
    mtbf: float | None = None,
    restart: float | None = None,
    price: float | None = None,
    samples: int | None = None,
    json: bool = False,
) -> None:
    """Say on paper what training a recipe takes: memory and sharding, time, cost, data rate, storage, failures.

    Args:
        recipe: A recipe's name, a run's folder, a recipe.json, or file.py:function.
        devices: How many GPUs, all alike.
        memory: Of one, as 80GB or 80GiB.
        flops: Its peak in bfloat16, operations a second: 312e12 for an A100, 989e12 for an H100.
        settings: Settings to replace, by their dotted path.
        data: What to train on in place of the recipe's data; see `train`.
        text: What reads the captions, in place of the recipe's encoder; see `train`.
        fp32_flops: Its peak in float32 without TF32; a sixteenth of --flops by default.
        efficiency: The share of the peak that a step reaches; 0.3 by default (docs/planning.md says why).
        per_node: GPUs in one machine; 8 by default.
        bandwidth: Between machines, for each GPU; 25GB/s by default.
        node_bandwidth: Within a machine, for each GPU; 250GB/s by default.
        overlap: The share of a step's arithmetic that traffic hides behind; 0.5 by default.
        write: How fast a checkpoint is written, hashed and read back; 1GB/s by default.
        mtbf: Hours between failures of one GPU, in the mean; failures are left out by default.
        restart: Seconds from a failure until all train again; 300 by default.
        price: Of a GPU's hour.
        samples: How many the data set has, for its size.
        json: Print all numbers as JSON instead: seconds, bytes, multiply-accumulates.
    """
    given = {
        "memory": number_of("memory", memory, _BYTES),
        "flops": number_of("flops", flops, _FLOPS),
        "fp32_flops": number_of("fp32-flops", fp32_flops, _FLOPS),
        "efficiency": efficiency,
        "per_node": per_node,
        "bandwidth": number_of("bandwidth", bandwidth, _RATE),
        "node_bandwidth": number_of("node-bandwidth", node_bandwidth, _RATE),
        "overlap": overlap,
        "write": number_of("write", write, _RATE),
        "mtbf": mtbf,
        "restart": restart,
        "price": price,
    }
    if samples is not None and samples < 1:
        raise UserError(f"--samples must be at least 1, found {samples}")
    from pixelspace.config import from_data
    from pixelspace.training.cost import Machine, check_devices, cost, total
    from pixelspace.training.work import works

    named = {"type": "Machine", "devices": devices, **{name: one for name, one in given.items() if one is not None}}
    machine: Machine = from_data(named, {"Machine": Machine})
    made = recipe_of(recipe, data, settings, text=text)
    counted = works(made)
    check_devices([work for work, _ in counted.values()], devices)
    costs = [cost(work, machine, activations) for work, activations in counted.values()]
    whole = total(costs)
    size = samples and samples * max(work.sample_bytes for work, _ in counted.values())
    if json:
        said = {"recipe": made.name, "machine": machine, "stages": costs, "total": whole, "data_bytes": size}
        print(json_format.dumps(said, default=dataclasses.asdict, indent=1))
        return
    lines = [f"{made.name} on {next(head := _machine(machine))}", *head]
    for number, (stage, one) in enumerate(zip(made.stages, costs, strict=True)):
        lines += ["", *_stage(stage, number, one, machine)]
    stored = f"; {samples:,} samples as loaders hand them over: {_bytes(size)}" if samples and size else ""
    lines += ["", f"{made.name}: {_passed(whole.seconds, whole.device_days, whole.price)}"]
    lines += [_line("storage", f"checkpoints {_bytes(whole.checkpoint_bytes)}{stored}")]
    print("\n".join(lines))
