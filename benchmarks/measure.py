"""What the benchmarks train and measure with, and show times with."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# For the environment of a process whose peak is measured: otherwise freed memory stays with it and hides later peaks.
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def held_bytes(device: str) -> int:
    """The memory this process holds now."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    return _resident("VmRSS")


def peak_bytes(device: str) -> int:
    """The most memory this process has held so far."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM")


def forget_peak(device: str) -> None:
    """Lets `peak_bytes` start again from what the process holds now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")


def column(times: list[float], reference: list[float]) -> str:
    """Median, spread and ratio."""
    middle = statistics.median(times)
    ratio = statistics.median(reference) / middle
    return f"{1e3 * middle:.0f} ({1e3 * min(times):.0f} - {1e3 * max(times):.0f}), {ratio:.2f}x"


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


@dataclass
class Cell:
    """A network in training, and what is done with it: forward and backward alone, then the optimiser and the average
    alone, and a whole step."""

    stage: Any
    state: Any
    both: Callable[[], None]
    update: Callable[[], None]
    step: Callable[[], object]


def made(
    stage: Any, device: str, plain: Callable[[Any], Any] | None = None, compiled: bool = False
) -> Callable[[], Cell]:
    """What builds the cell of a stage, the first of its images read already; with `plain` the network and its step
    stand as one would first write them."""
    import torch
    from plain.training import Training

    from pixelspace.data.loader import read, to_model_space
    from pixelspace.growth.freeze import freeze
    from pixelspace.random import Rng
    from pixelspace.training.ema import Average
    from pixelspace.training.preview import autocast
    from pixelspace.training.state import State
    from pixelspace.training.step import train_step
    from pixelspace.training.words import with_text

    rng, where = Rng(0), torch.device(device)
    reader = stage.text.open(where) if stage.text else None
    raw = read(stage.data.source.open(), list(range(stage.batch)), stage.size)
    batch = with_text(to_model_space(raw, stage.data, stage.codec, rng, where), raw.texts, reader)
    draw = stage.objective.draw(batch, stage.batch, 0.0, rng)

    def build() -> Cell:
        torch.manual_seed(0)
        network = stage.backbone.build().to(where)
        network.checkpointing = stage.checkpointing
        freeze(network, stage.freeze)
        own = plain(network) if plain else network
        called = torch.compile(own) if compiled else own

        def forward(x, c_noise, cond, **keep):
            with autocast(stage, where):
                return called(x, c_noise, cond, **keep)

        def both() -> None:
            stage.objective.loss(forward, batch, draw).mean().backward()

        if plain:
            learner = Training(own, forward, stage, network)
            return Cell(stage, learner, both, learner.update, lambda: learner.step(raw, rng))
        state = State(network, Average(network), stage.optimizer.build(network))

        def update() -> None:
            state.optimizer.step()
            state.average.update(network, stage.ema)

        return Cell(stage, state, both, update, lambda: train_step(state, forward, stage, raw, rng, reader))

    return build


def timed(cells: dict[Any, Cell], repeats: int, device: str) -> dict[Any, dict[str, list[float]]]:
    """Seconds by cell, action and repeat; repeats go round the cells, after two in which they load and allocate."""
    found: dict[Any, dict[str, list[float]]] = {key: {"both": [], "update": [], "step": []} for key in cells}
    for repeat in range(repeats + 2):
        for key, cell in cells.items():
            took = {what: seconds(getattr(cell, what), device) for what in ("both", "update")}
            cell.state.optimizer.zero_grad(set_to_none=True)
            took["step"] = seconds(cell.step, device)
            for what, time_taken in took.items() if repeat >= 2 else ():
                found[key][what].append(time_taken)
    return found


def asked(description: str | None, *, batch: int, repeats: int = 7) -> argparse.ArgumentParser:
    """What every benchmark of training is asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def machine(given: argparse.Namespace) -> str:
    """Where and how it was measured."""
    import torch

    name = torch.cuda.get_device_name() if given.device == "cuda" else f"{os.cpu_count()} CPUs {platform.machine()}"
    return f"{name}, torch {torch.__version__}, {given.precision}, batch {given.batch}, {given.repeats} repeats"
