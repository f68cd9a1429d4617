"""Time and memory over pixels and over parameters: HDiT, with one level more for each doubling of the side, and a DiT.

    python benchmarks/scale.py --figure docs/scaling.png > benchmarks/scale_2vcpu_202611.md

HDiT at 64 px is a plain transformer on 16 x 16 patches of 4 pixels (width 256, 4 layers, every token to every token).
Each doubling puts a level of neighborhood attention round it (width 128, kernel 7, a layer on the way down and one on
the way up), so that the coarsest grid stays 16 x 16. The DiT keeps the plain network and patches of 4 pixels, and has
four times the tokens; it stops at `--largest-dit`, for a step at 1024 px would take a quarter of an hour.

Time is of a forward pass without gradients, as in sampling, and of forward and backward of the loss, one image in
float32; memory is the peak above weights and inputs. Each cell has a process of its own for its peak, by its first
calls. Times are of another, in which repeats go round the cells, after one that is left out; a cell of more than 40
seconds is timed once, by its first calls. On a CPU one thread is taken, whose own time counts. Where times are taken
the allocator keeps what is freed, as in all commands of `pixelspace`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from measure import (
    RETURNS_MEMORY,
    asked,
    forget_peak,
    held_bytes,
    machine,
    peak_bytes,
    seconds,
)

from pixelspace.cli.machine import prepare

SIDES = (64, 128, 256, 512, 1024)
WIDTHS = (64, 128, 192, 256)
CORE, SIDE_OF_WIDTHS, SLOW = 64, 256, 40.0  # seconds

Key = tuple[str, int, int]
"""The kind, the side in pixels, and the width of the levels round the core, which is twice as wide."""
Cells = dict[Key, list[dict[str, float]]]


def network(key: Key) -> Any:
    """The configuration of a cell's network."""
    from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood

    kind, side, width = key
    outer = (side // CORE).bit_length() - 1 if kind == "HDiT" else 0
    return HDiTConfig((*[Level(width, 1, Neighborhood())] * outer, Level(2 * width, 4, Global())))


def actions(key: Key, device: str) -> dict[str, Callable[[], None]]:
    """What is measured of a cell's network, by name."""
    import torch

    from pixelspace.random import Rng
    from pixelspace.recipes.hdit import objective_at
    from pixelspace.types import Batch

    torch.manual_seed(0)
    side, objective = key[1], objective_at(key[1])
    built = network(key).build().to(device)
    batch = Batch(torch.randn(1, 3, side, side, device=device), {}, torch.arange(1, device=device))
    draw = objective.draw(batch, 1, 0.0, Rng(0))

    def forward() -> None:
        with torch.no_grad():
            objective.loss(built, batch, draw)

    def both() -> None:
        objective.loss(built, batch, draw).mean().backward()
        built.zero_grad(set_to_none=True)

    return {"forward": forward, "both": both}


def first_calls(key: Key, device: str) -> dict[str, float]:
    """Peak bytes and seconds of the first calls in this process."""
    found: dict[str, float] = {}
    for name, action in actions(key, device).items():
        forget_peak(device)
        before = held_bytes(device)
        found[name] = seconds(action, device)
        found[f"{name}_bytes"] = peak_bytes(device) - before
    return found


def times(keys: Sequence[Key], repeats: int, device: str) -> list[list[dict[str, float]]]:
    """Seconds of every cell, of each repeat but a first."""
    cells = [actions(key, device) for key in keys]
    rounds = [
        [{name: seconds(action, device) for name, action in one.items()} for one in cells] for _ in range(repeats + 1)
    ]
    return [list(runs) for runs in zip(*rounds[1:], strict=True)]


def measured(keys: Sequence[Key], given: argparse.Namespace) -> Cells:
    """The memory of every cell, by a process of its own, and its times, in one for all that are not slow."""

    def ran(work: Any, **allocator: str) -> Any:
        print(work, file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--device", given.device, "--repeats", str(given.repeats)]
        ran = subprocess.run(
            [*command, "--work", json.dumps(work)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **allocator},
            check=True,
        )
        return json.loads(ran.stdout)

    first = {key: ran(key, **RETURNS_MEMORY) for key in keys}
    quick = [key for key in keys if first[key]["both"] <= SLOW]
    timed = dict(zip(quick, ran(quick), strict=True))
    return {key: [{**first[key], **run} for run in timed.get(key, [{}])] for key in keys}


def macs(key: Key) -> int:
    """Of a forward pass."""
    return network(key).macs(key[1], key[1])


def parameters(key: Key) -> int:
    import torch

    with torch.device("meta"):
        return sum(weight.numel() for weight in network(key).build().parameters())


def middle(runs: Sequence[dict[str, float]], name: str) -> float:
    return median(run[name] for run in runs)


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Median and extremes."""
    low, high = (f"{scale * value:.3g}" for value in (min(values), max(values)))
    return f"{scale * median(values):.3g} ({low} - {high})"


def row(*columns: object) -> str:
    return f"| {' | '.join(map(str, columns))} |"


def head(*columns: str) -> list[str]:
    return ["", row(*columns), row(*["---"] * len(columns))]


def by_side(cells: Cells) -> list[str]:
    """The table over pixels; a cell that was not run has its MACs alone."""
    lines = head(
        *("network", "px", "levels", "GMAC", "kMAC a pixel", "forward s", "forward + backward s", "of it µs a pixel"),
        *("MiB, forward", "MiB, both"),
    )
    for kind in ("HDiT", "DiT"):
        for side in SIDES:
            key: Key = (kind, side, 128)
            counted = macs(key)
            columns = [kind, side, len(network(key).levels), f"{counted / 1e9:.2f}", f"{counted / side**2 / 1e3:.1f}"]
            runs = cells.get(("HDiT", side, 128) if side == CORE else key)
            if runs:
                times = [spread([run[name] for run in runs]) for name in ("forward", "both")]
                pixel = f"{1e6 * middle(runs, 'both') / side**2:.1f}"
                held = [f"{middle(runs, name) / 2**20:.0f}" for name in ("forward_bytes", "both_bytes")]
            else:
                times, pixel, held = ["not run", "not run"], "", ["", ""]
            lines.append(row(*columns, *times, pixel, *held))
    return lines


def added(cells: Cells) -> list[str]:
    """What each level of HDiT costs by itself: the network with it less the network within it, in the same repeat."""
    lines = head(
        *("added level", "GMAC", "of the one before", "forward s", "of the one before"),
        *("forward + backward s", "of the one before", "MiB, both", "of the one before"),
    )
    keys: list[Key] = [("HDiT", side, 128) for side in SIDES]
    before: list[float] | None = None
    for inner, outer in pairwise(keys):
        own = [float(macs(outer) - macs(inner))]
        texts = [f"{own[0] / 1e9:.3f}"]
        for name in ("forward", "both", "both_bytes"):
            differences = [a[name] - b[name] for a, b in zip(cells[outer], cells[inner], strict=True)]
            own.append(median(differences))
            texts.append(f"{own[-1] / 2**20:.0f}" if name == "both_bytes" else spread(differences))
        ratios = [f"{now / past:.2f}x" for now, past in zip(own, before, strict=True)] if before else [""] * len(own)
        grid = outer[1] // 4
        columns = [text for pair in zip(texts, ratios, strict=True) for text in pair]
        lines.append(row(f"{outer[1]} px, {grid} x {grid} tokens", *columns))
        before = own
    return lines


def by_width(cells: Cells) -> list[str]:
    """The table over parameters."""
    lines = head(
        *("widths", "M parameters", "GMAC", "forward s", "forward + backward s", "GMAC/s, both", "MiB, forward"),
        "MiB, both",
    )
    for width in WIDTHS:
        runs, counted = cells["HDiT", SIDE_OF_WIDTHS, width], macs(("HDiT", SIDE_OF_WIDTHS, width))
        times = [spread([run[name] for run in runs]) for name in ("forward", "both")]
        rate = f"{3 * counted / middle(runs, 'both') / 1e9:.1f}"
        held = [f"{middle(runs, name) / 2**20:.0f}" for name in ("forward_bytes", "both_bytes")]
        sized = [
            f"{width}, {2 * width}",
            f"{parameters(('HDiT', SIDE_OF_WIDTHS, width)) / 1e6:.2f}",
            f"{counted / 1e9:.2f}",
        ]
        lines.append(row(*sized, *times, rate, *held))
    return lines


def verdict(cells: Cells) -> str:
    """What is claimed, in the numbers of this run."""
    sides = [side for side in SIDES if side >= SIDE_OF_WIDTHS]

    def relative(value: Callable[[Key], float]) -> str:
        a_pixel = [value(("HDiT", side, 128)) / side**2 for side in sides]
        return ", ".join(f"{one / a_pixel[0]:.3f}" for one in a_pixel)

    parts = [
        relative(macs),
        *(relative(lambda key, name=name: middle(cells[key], name)) for name in ("forward", "both")),
    ]
    return fill(
        f"Cost of a pixel of HDiT at {', '.join(map(str, sides))} px, of that at {sides[0]} px: in MACs {parts[0]}; in "
        f"seconds of a forward pass {parts[1]}; of forward and backward {parts[2]}.",
        120,
    )


def picture(cells: Cells, path: Path) -> None:
    """MACs, time and memory over the side, of both networks."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (counted, timed, held) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for kind, color in (("HDiT", "tab:blue"), ("DiT", "tab:red")):
        counted.plot(SIDES, [macs((kind, side, 128)) / side**2 / 1e3 for side in SIDES], "o-", color=color, label=kind)
        runs = {
            side: cells.get((kind, side, 128)) or (cells["HDiT", side, 128] if side == CORE else None) for side in SIDES
        }
        ran = {side: found for side, found in runs.items() if found}
        a_pixel = {side: [1e6 * run["both"] / side**2 for run in found] for side, found in ran.items()}
        middles = [median(times) for times in a_pixel.values()]
        low, high = (
            [abs(end(times) - m) for times, m in zip(a_pixel.values(), middles, strict=True)] for end in (min, max)
        )
        timed.errorbar(list(ran), middles, (low, high), fmt="o-", color=color, capsize=3)
        held.plot(list(ran), [middle(found, "both_bytes") / 2**20 for found in ran.values()], "o-", color=color)
    titles = ("kMAC a pixel, forward", "µs a pixel, forward + backward", "MiB, forward + backward")
    for axes, title in zip((counted, timed, held), titles, strict=True):
        axes.set(xscale="log", yscale="log", title=title, xlabel="side, px")
        axes.set_xticks(SIDES, [str(side) for side in SIDES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    counted.legend(frameon=False)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def main() -> None:
    """Prints the Markdown that is kept."""
    prepare()
    parser = asked(__doc__, batch=1, repeats=5)
    parser.add_argument("--largest-dit", type=int, choices=SIDES, default=512, help="px")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.batch != 1 or given.precision != "fp32":
        parser.error("it is measured with one image in float32")
    if given.work:
        import torch

        if given.device == "cpu":
            torch.set_num_threads(1)
        several = isinstance(given.work[0], list)
        work = times(given.work, given.repeats, given.device) if several else first_calls(given.work, given.device)
        print(json.dumps(work))
        return
    keys: list[Key] = [
        *(("HDiT", side, 128) for side in SIDES),
        *(("HDiT", SIDE_OF_WIDTHS, width) for width in WIDTHS if width != 128),
        *(("DiT", side, 128) for side in SIDES if CORE < side <= given.largest_dit),
    ]
    cells = measured(keys, given)
    print(f"# Time and memory over pixels and parameters\n\n{machine(given)}; median (fastest - slowest).")
    print("`python benchmarks/scale.py --figure docs/scaling.png > benchmarks/scale_2vcpu_202611.md`\n")
    print((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip())
    print(f"\n## Over pixels\n\n{verdict(cells)}\n" + "\n".join(by_side(cells)))
    print("\n## What a level costs by itself\n\nThe network with it less the one within it, of the same repeat.")
    print("\n".join(added(cells)))
    print(f"\n## Over parameters, at {SIDE_OF_WIDTHS} px\n\nA backward pass is counted as two forward passes.")
    print("\n".join(by_width(cells)))
    if given.figure:
        picture(cells, given.figure)


if __name__ == "__main__":
    main()
