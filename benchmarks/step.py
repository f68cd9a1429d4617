"""A training step of every system: beside the same written as one first would, at about equal size, and its data.

    python benchmarks/step.py [--device cpu] [--precision fp32] [--batch 4] [--repeats 7]
        [--tables rivals systems waits] [--cases ...] [--modes eager compiled] [--sizes toy small]

`rivals`: images a second, eager and compiled, of ours and of the same network and step without care (`plain/`: dense
masks or gathered neighbors, no tables kept, the optimiser and the average tensor by tensor), how many times as fast as
the first of these, how much of a step the optimiser and the average take, and the most memory that a step holds above
weights, moments and average, in a process of its own.

`waits`: how much of a step of shipped recipes goes by before its images are there, as the training loop logs it.

`systems`: images of 64 x 64 pixels in 8 classes, a fresh network of each system, eager. `toy` has 3 to 5 million
parameters, `small` 28 to 43. MaskDiT is shown half of its patches. A nested UNet has the widths of the plain one and
each grid between two of its levels twice; a table of levels has what each costs over the network inside it alone.
Median (fastest to slowest) milliseconds, and how many times as fast as the UNet; MiB of weights, and of what autograd
keeps for the backward pass, weights not counted (a step also holds gradients, two moments and an average, each as large
as the weights).

Repeats go round the networks in turn, so that a busy moment of the machine hits all of them; on a CPU they take one
thread, whose own time counts. Prints Markdown.
"""

import argparse
from statistics import median
from typing import Any

import rivals
import waiting
from measure import Cell, asked, column, machine, made, timed
from pyramids import Sides, backbone_of, objective_of

from pixelspace.cli.machine import prepare

TABLES = ("rivals", "systems", "waits")
SIDE, CLASSES = 64, 8
PYRAMID = (64, 32, 16)
WIDTHS = {"toy": {64: 32, 32: 64, 16: 96, 8: 128}, "small": {64: 64, 32: 128, 16: 256, 8: 384}}


def systems(size: str) -> dict[str, tuple[Any, Any]]:
    """Networks of one image, and their objectives."""
    from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
    from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
    from pixelspace.backbones.uvit import CoreConfig, UViTConfig
    from pixelspace.noise.levels import LogNormal
    from pixelspace.noise.process import EDM, Process
    from pixelspace.objectives.masked import Masked, MaskRatio
    from pixelspace.recipes.greedy import objective_at as greedy
    from pixelspace.recipes.hdit import objective_at as hourglass

    toy = size == "toy"
    wide, deep, head = (192, 4, 32) if toy else (512, 8, 64)
    levels = (Level(wide // 2, 2, Neighborhood(head)), Level(wide, deep, Global(head)))
    core = CoreConfig(wide, deep, head, (8, 8), cond_width=256, num_classes=CLASSES)
    mask = MaskDiTConfig(
        wide,
        deep,
        wide // head,
        (SIDE, SIDE),
        4,
        channels=3,
        num_classes=CLASSES,
        decoder=Decoder(wide // 2, 2, wide // head),
    )
    masked = Masked(Process(EDM(0.5)), LogNormal(), (4, 4), MaskRatio(0.5), mae=0.1, drop_rate=0.1)
    return {
        "HDiT": (HDiTConfig(levels, num_classes=CLASSES), hourglass(SIDE, drop_rate=0.1)),
        "UViT": (UViTConfig(core, (32, 64) if toy else (64, 128)), greedy(SIDE)),
        "MaskDiT": (mask, masked),
    }


def staged(backbone: Any, objective: Any, side: int, given: argparse.Namespace) -> Any:
    """The stage in which a network learns."""
    from pixelspace.data.emoji import Emoji
    from pixelspace.data.loader import Data
    from pixelspace.training.stage import Stage

    return Stage(
        name="step",
        backbone=backbone,
        objective=objective,
        data=Data(Emoji()),
        size=(side, side),
        batch=given.batch,
        images=given.batch * 1000,
        precision=given.precision,
    )


def unets(size: str, given: argparse.Namespace) -> dict[Sides, Any]:
    """Stages of all UNets by their levels: those of PYRAMID and what is inside, and plain ones."""

    def of(sides: Sides) -> Any:
        return staged(backbone_of(sides, WIDTHS[size], num_classes=CLASSES), objective_of(sides), sides[0], given)

    nested = [PYRAMID[i:] for i in range(len(PYRAMID))]
    found: list[Sides] = [(SIDE,), (SIDE, 32), *nested, (32,)]
    return {sides: of(sides) for sides in found}


def name_of(sides: Sides) -> str:
    """What the tables call a UNet."""
    return f"{sides[0]} alone" if len(sides) == 1 else " + ".join(map(str, sides))


def weight_bytes(cell: Cell) -> int:
    """Of the network's parameters."""
    return sum(weight.nbytes for weight in cell.state.network.parameters())


def short(number: float, sign: str = "") -> str:
    """With one decimal up to 100."""
    return f"{number:{sign}.{int(number < 100)}f}"


def report(size: str, given: argparse.Namespace) -> None:
    """Both tables of one size."""
    from pixelspace.training.memory import activation_bytes

    stages = {name: staged(*of, SIDE, given) for name, of in systems(size).items()} | unets(size, given)
    cells = {key: made(stage, given.device)() for key, stage in stages.items()}
    kept = {key: activation_bytes(stage, given.batch) for key, stage in stages.items()}
    times = timed(cells, given.repeats, given.device)

    print(f"\n**{size}**\n")
    print("| network | M parameters | GMAC an image | forward + backward ms | step ms | MiB weights | MiB kept |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for key, stage in stages.items():
        if stage.size[0] < SIDE:
            continue
        name = key if isinstance(key, str) else "UNet" if len(key) == 1 else f"nested UNet {name_of(key)}"
        macs = stage.backbone.macs(SIDE, SIDE, stage.objective.kept(SIDE, SIDE, 0.0))
        sized = [f"{weight_bytes(cells[key]) / 4e6:.2f}", f"{macs / 1e9:.2f}"]
        memory = weight_bytes(cells[key]) / 2**20, kept[key] / 2**20
        ran = [column(times[key][what], times[(SIDE,)][what]) for what in ("both", "step")]
        print(f"| {' | '.join([name, *sized, *ran, *map(short, memory)])} |")

    numbers = {
        key: [
            *(1e3 * median(times[key][what]) for what in ("both", "step")),
            weight_bytes(cells[key]) / 2**20,
            kept[key] / 2**20,
        ]
        for key in stages
    }
    heads = ("forward + backward ms", "step ms", "MiB weights", "MiB kept")
    print("\n| levels, px | the first adds | " + " | ".join(f"{head}, + added" for head in heads) + " |")
    print("| --- " * (len(heads) + 2) + "|")
    for sides in ((16,), (32, 16), PYRAMID, (32,), (SIDE, 32)):
        inside = sides[1:]
        columns = [short(number) for number in numbers[sides]]
        if inside:
            more = (whole - within for whole, within in zip(numbers[sides], numbers[inside], strict=True))
            columns = [f"{whole}, {short(added, '+')}" for whole, added in zip(columns, more, strict=True)]
        print(f"| {' | '.join([name_of(sides), str(sides[0]) if inside else '', *columns])} |")


def main() -> None:
    """Prints the tables."""
    prepare()
    parser = asked(__doc__, batch=4)
    parser.add_argument("--sizes", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--cases", nargs="+", choices=rivals.CASES, default=list(rivals.CASES))
    parser.add_argument("--modes", nargs="+", choices=rivals.MODES, default=list(rivals.MODES))
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)  # case, way, mode
    given = parser.parse_args()
    import torch

    if given.device == "cpu":
        torch.set_num_threads(1)
    if given.peak:
        print(rivals.peak(*given.peak, given))
        return
    print(machine(given))
    if "rivals" in given.tables:
        rivals.report(given)
    for size in given.sizes if "systems" in given.tables else ():
        report(size, given)
    if "waits" in given.tables:
        waiting.report(given)


if __name__ == "__main__":
    main()
