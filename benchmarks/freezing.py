"""What freezing the core saves: arithmetic, time and memory of a UViT's training step, frozen and not, in one run.

    python benchmarks/freezing.py [--device cpu] [--precision fp32] [--batch 4] [--repeats 7] [--networks deep flat]

128 x 128 pixels in patches of 2, a core of 16 x 16 tokens that reads 48 bytes of text. `deep`: a core 384 wide and 8
deep in levels of 32 and 64 channels, most of the work; `flat`: one 128 wide and 4 deep in levels of 64 and 128, little
of it. Repeats go round the arms in turn, so that a busy moment of the machine hits all of them; on a CPU they take one
thread, whose own time counts. Memory is that of a process of its own for each cell, above what it held before there
was a network. Prints two Markdown tables: GMAC of forward and backward as torch counts them (plain attention) and by
`recipes.greedy.step_macs`, which knows no recomputation; median (fastest to slowest) milliseconds, and how many times
as fast as unfrozen; then MiB of what a step holds, by part, and its measured peak.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from measure import (
    RETURNS_MEMORY,
    asked,
    column,
    forget_peak,
    held_bytes,
    machine,
    made,
    peak_bytes,
    timed,
)

from pixelspace.cli.machine import prepare

NETWORKS = {"deep": ((384, 8, 64), (32, 64)), "flat": ((128, 4, 64), (64, 128))}
ARMS = {"unfrozen": (False, False), "frozen": (True, False), "frozen, checkpointing": (True, True)}
SIZE = (128, 128)
TOKENS = 48


def staged(network: str, arm: str, given: argparse.Namespace) -> Any:
    """The stage of one arm."""
    from pixelspace.backbones.uvit import CoreConfig, UViTConfig
    from pixelspace.data.emoji import Emoji
    from pixelspace.data.loader import Data
    from pixelspace.nn.text import Text
    from pixelspace.recipes.greedy import KEPT, objective_at
    from pixelspace.text.bytes import Bytes
    from pixelspace.training.stage import Stage

    (width, depth, head_dim), widths = NETWORKS[network]
    text = Text(256, 0, inner=width, head_dim=head_dim)
    frozen, checkpointing = ARMS[arm]
    return Stage(
        name="freezing",
        backbone=UViTConfig(CoreConfig(width, depth, head_dim, cond_width=256, text=text), widths, seam="affine"),
        objective=objective_at(SIZE[0]),
        data=Data(Emoji()),
        size=SIZE,
        batch=given.batch,
        images=given.batch * 1000,
        text=Bytes(TOKENS),
        freeze=KEPT if frozen else (),
        checkpointing=checkpointing,
        precision=given.precision,
    )


def child(network: str, arm: str, what: str, given: argparse.Namespace) -> Any:
    """What one of this program's own processes finds."""
    command = [sys.executable, __file__, "--networks", network, "--arm", arm, "--what", what, "--device", given.device]
    command += ["--batch", str(given.batch), "--repeats", str(given.repeats), "--precision", given.precision]
    env = {**os.environ, **(RETURNS_MEMORY if what == "memory" else {})}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout)


def measured_times(network: str, given: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds by arm, action and repeat."""
    cells = {arm: made(staged(network, arm, given), given.device)() for arm in ARMS}
    return timed(cells, given.repeats, given.device)


def counted(network: str, arm: str, given: argparse.Namespace) -> list[float]:
    """GMAC of forward and backward on one image: as torch counts them, and by closed form."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from pixelspace.recipes.greedy import step_macs

    cell = made(staged(network, arm, given), given.device)()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernels are not all known
        cell.both()
    return [counter.get_total_flops() / 2 / given.batch / 1e9, step_macs(cell.stage) / 1e9]


def measured_memory(network: str, arm: str, given: argparse.Namespace) -> list[int]:
    """Bytes of weights, gradients, moments, average and what autograd saves, and the measured peak of a step."""
    from torch import Tensor

    from pixelspace.training.memory import activation_bytes

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    build = made(staged(network, arm, given), given.device)
    before = held_bytes(given.device)
    cell = build()
    cell.step()  # makes the moments
    forget_peak(given.device)
    cell.step()
    peak = peak_bytes(given.device) - before
    cell.both()
    weights = list(cell.state.network.parameters())
    own = {weight.data_ptr() for weight in weights}
    return [
        size(weights),
        size(weight.grad for weight in weights if weight.grad is not None),
        size(moment for moments in cell.state.optimizer.state.values() for moment in moments.values()),
        size(tensor for tensor in cell.state.average.tensors.values() if tensor.data_ptr() not in own),
        activation_bytes(cell.stage, given.batch),
        peak,
    ]


def main() -> None:
    """Prints the tables, or as a child process a part of them."""
    prepare()
    parser = asked(__doc__, batch=4)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    given = parser.parse_args()
    network = given.networks[0]
    if given.what and given.device == "cpu":
        import torch

        torch.set_num_threads(1)
    if given.what == "time":
        print(json.dumps(measured_times(network, given)))
    elif given.what:
        measure = counted if given.what == "count" else measured_memory
        print(json.dumps(measure(network, given.arm, given)))
    else:
        report(given)


def report(given: argparse.Namespace) -> None:
    """Both tables."""

    print(f"{machine(given)}\n")
    print("| network | core | GMAC an image, counted | closed form | forward + backward ms | training step ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for network in given.networks:
        times = child(network, "", "time", given)
        for arm in ARMS:
            macs = [f"{gmac:.2f}" for gmac in child(network, arm, "count", given)]
            timed = [column(times[arm][name], times["unfrozen"][name]) for name in ("both", "step")]
            print(f"| {' | '.join([network, arm, *macs, *timed])} |", flush=True)
    print("\n| network | core | weights | gradients | moments | average | activations | together | measured peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for network in given.networks:
        for arm in ARMS:
            *parts, peak = child(network, arm, "memory", given)
            held = [f"{size / 2**20:.1f}" for size in (*parts, sum(parts), peak)]
            print(f"| {' | '.join([network, arm, *held])} |", flush=True)


if __name__ == "__main__":
    main()
