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
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from measure import RETURNS_MEMORY, SPINS_LITTLE, column, forget_peak, held_bytes, peak_bytes

NETWORKS = {"deep": ((384, 8, 64), (32, 64)), "flat": ((128, 4, 64), (64, 128))}
ARMS = {"unfrozen": (False, False), "frozen": (True, False), "frozen, checkpointing": (True, True)}
SIZE = (128, 128)
TOKENS = 48


@dataclass
class Cell:
    """A network in training, and what is done with it: forward and backward alone, and a whole step."""

    stage: Any
    state: Any
    both: Callable[[], None]
    step: Callable[[], object]


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


def made(network: str, arm: str, given: argparse.Namespace) -> Callable[[], Cell]:
    """What builds the cell, its data read already."""
    import torch

    from pixelspace.data.codec import Pixels
    from pixelspace.data.emoji import Emoji
    from pixelspace.data.loader import read, to_model_space
    from pixelspace.growth.freeze import freeze
    from pixelspace.random import Rng
    from pixelspace.training.ema import Average
    from pixelspace.training.loop import train_step
    from pixelspace.training.preview import autocast
    from pixelspace.training.state import State
    from pixelspace.training.words import with_text

    stage, rng, device = staged(network, arm, given), Rng(0), torch.device(given.device)
    reader = stage.text.open(device)
    raw = read(Emoji().open(), list(range(given.batch)), SIZE)
    batch = with_text(to_model_space(raw, stage.data, Pixels(), rng, device), raw.texts, reader)
    draw = stage.objective.draw(batch, given.batch, 0.0, rng)

    def build() -> Cell:
        torch.manual_seed(0)
        net = stage.backbone.build().to(device)
        net.checkpointing = stage.checkpointing
        freeze(net, stage.freeze)
        state = State(net, Average(net), stage.optimizer.build(net))

        def forward(x, c_noise, cond):
            with autocast(stage, device):
                return net(x, c_noise, cond)

        def both() -> None:
            forward(batch.x, draw.sigma.log() / 4, batch.cond).float().square().mean().backward()

        return Cell(stage, state, both, lambda: train_step(state, forward, stage, raw, rng, reader))

    return build


def seconds(action: Callable[[], object], device: str) -> float:
    """How long one call takes: on a CPU of this process's time, which other work disturbs little."""
    import torch

    def now() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    began = now()
    action()
    return now() - began


def child(network: str, arm: str, what: str, given: argparse.Namespace) -> Any:
    """What one of this program's own processes finds."""
    command = [sys.executable, __file__, "--networks", network, "--arm", arm, "--what", what, "--device", given.device]
    command += ["--batch", str(given.batch), "--repeats", str(given.repeats), "--precision", given.precision]
    env = {**os.environ, **SPINS_LITTLE, **(RETURNS_MEMORY if what == "memory" else {})}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout)


def measured_times(network: str, given: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds by arm, action and repeat."""
    cells = {arm: made(network, arm, given)() for arm in ARMS}
    found = {arm: {"both": [], "step": []} for arm in ARMS}
    for repeat in range(given.repeats + 2):
        for arm, cell in cells.items():
            both = seconds(cell.both, given.device)
            cell.state.optimizer.zero_grad(set_to_none=True)
            step = seconds(cell.step, given.device)
            if repeat >= 2:  # the first ones load and allocate
                found[arm]["both"].append(both)
                found[arm]["step"].append(step)
    return found


def counted(network: str, arm: str, given: argparse.Namespace) -> list[float]:
    """GMAC of forward and backward on one image: as torch counts them, and by closed form."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from pixelspace.recipes.greedy import step_macs

    cell = made(network, arm, given)()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernels are not all known
        cell.both()
    return [counter.get_total_flops() / 2 / given.batch / 1e9, step_macs(cell.stage) / 1e9]


def measured_memory(network: str, arm: str, given: argparse.Namespace) -> list[int]:
    """Bytes of weights, gradients, moments, average and what autograd saves, and the measured peak of a step."""
    from torch import Tensor

    from pixelspace.training.memory import activation_bytes

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    build = made(network, arm, given)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
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
    import torch

    machine = torch.cuda.get_device_name() if given.device == "cuda" else f"{os.cpu_count()} CPUs {platform.machine()}"
    print(f"{machine}, torch {torch.__version__}, {given.precision}, batch {given.batch}, {given.repeats} repeats\n")
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
