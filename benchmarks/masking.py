"""What masking saves: time and peak memory of one MaskDiT at mask 0, 0.25, 0.5 and 0.75, in one run.

    python benchmarks/masking.py [--device cpu] [--precision fp32] [--batch 16] [--repeats 7] [--decoders 112x2 512x8]

Width 256, depth 8, 4 heads, 32 x 32 pixels in patches of 2: 256 tokens. Decoders: one with XL's share of the
encoder, the original's 512 x 8, and none. Repeats go round the ratios in turn, so that a busy moment of the machine
hits all of them. Memory is that of a process of its own for each cell, above what it held at its start. Prints a
Markdown table: median (fastest to slowest) milliseconds, and how many times as fast as mask 0 of the same decoder.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from measure import RETURNS_MEMORY, asked, column, forget_peak, machine, peak_bytes

from pixelspace.cli.machine import prepare

RATIOS = (0.0, 0.25, 0.5, 0.75)
DECODERS = {"112x2": (112, 2, 4), "512x8": (512, 8, 16), "none": None}


def actions(decoder: str, ratio: float, given: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """`pass`: forward and backward of the network alone; `step`: a whole step of the training loop."""
    import torch

    from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
    from pixelspace.data.codec import Pixels
    from pixelspace.data.emoji import Emoji
    from pixelspace.data.loader import Data, read, to_model_space
    from pixelspace.noise.levels import LogNormal
    from pixelspace.noise.process import EDM, Process
    from pixelspace.objectives.masked import Masked, MaskRatio
    from pixelspace.random import Rng
    from pixelspace.training.ema import Average
    from pixelspace.training.preview import autocast
    from pixelspace.training.stage import Stage
    from pixelspace.training.state import State
    from pixelspace.training.step import train_step

    shape = DECODERS[decoder]
    config = MaskDiTConfig(256, 8, 4, (32, 32), 2, channels=3, num_classes=8, decoder=shape and Decoder(*shape))
    mae = 0.1 if shape else 0.0
    objective = Masked(Process(EDM(0.5)), LogNormal(), (2, 2), MaskRatio(ratio), mae=mae, drop_rate=0.1)
    data, rng, device = Data(Emoji()), Rng(0), torch.device(given.device)
    stage = Stage(
        name="masking",
        backbone=config,
        objective=objective,
        data=data,
        size=(32, 32),
        batch=given.batch,
        images=given.batch * 1000,
        precision=given.precision,
    )
    torch.manual_seed(0)
    network = config.build().to(device)
    state = State(network, Average(network), stage.optimizer.build(network))
    raw = read(Emoji().open(), list(range(given.batch)), (32, 32))
    batch = to_model_space(raw, data, Pixels(), rng, device)
    draw = objective.draw(batch, given.batch, 0.0, rng)
    keep = {} if draw.keep is None else {"keep": draw.keep}

    def forward(x, c_noise, cond, **keep):
        with autocast(stage, device):
            return network(x, c_noise, cond, **keep)

    def both() -> None:
        forward(batch.x, draw.sigma.log() / 4, batch.cond, **keep).float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    return {"pass": both, "step": lambda: train_step(state, forward, stage, raw, rng)}


def seconds(action: Callable[[], object], device: str) -> float:
    """How long one call takes."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - began


def child(decoder: str, what: str, given: argparse.Namespace) -> list:
    """One of this program's own processes: `time`, or `memory` of one ratio."""
    command = [sys.executable, __file__, "--decoder", decoder, "--what", what, "--device", given.device]
    command += ["--batch", str(given.batch), "--repeats", str(given.repeats), "--precision", given.precision]
    env = {**os.environ, **({} if what == "time" else RETURNS_MEMORY)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def measured_times(decoder: str, given: argparse.Namespace) -> list:
    """Seconds by ratio, action and repeat."""
    cells = [actions(decoder, ratio, given) for ratio in RATIOS]
    found: list[dict[str, list[float]]] = [{name: [] for name in cell} for cell in cells]
    for repeat in range(given.repeats + 2):
        for cell, times in zip(cells, found, strict=True):
            for name, action in cell.items():
                taken = seconds(action, given.device)
                if repeat >= 2:  # the first ones load and allocate
                    times[name].append(taken)
    return found


def measured_memory(decoder: str, ratio: float, given: argparse.Namespace) -> list:
    """Peak bytes of forward and backward, and of the whole step, above the weights and their optimiser's state."""
    cell = actions(decoder, ratio, given)
    forget_peak(given.device)
    before, found = peak_bytes(given.device), []
    for action in cell.values():
        action()
        found.append(peak_bytes(given.device) - before)
    return found


def main() -> None:
    """Prints the table, or as a child process one of its parts."""
    prepare()
    parser = asked(__doc__, batch=16)
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=["112x2", "none"])
    parser.add_argument("--decoder", choices=DECODERS, help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.decoder:
        if given.what == "time":
            print(json.dumps(measured_times(given.decoder, given)))
        else:
            print(json.dumps(measured_memory(given.decoder, float(given.what), given)))
        return
    print(f"{machine(given)}\n")
    print("| decoder | mask | forward + backward ms | training step ms | peak MB, pass | peak MB, step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for decoder in given.decoders:
        times = child(decoder, "time", given)
        for ratio, cell in zip(RATIOS, times, strict=True):
            memory = child(decoder, str(ratio), given)
            columns = [column(cell[name], times[0][name]) for name in ("pass", "step")]
            held = [f"{size / 2**20:.0f}" for size in memory]
            print(f"| {' | '.join([decoder, str(ratio), *columns, *held])} |", flush=True)


if __name__ == "__main__":
    main()
