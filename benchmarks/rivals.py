"""Training steps of ours beside the same networks and steps as one would first write them: what `step.py` tells of
both."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from measure import RETURNS_MEMORY, forget_peak, held_bytes, made, peak_bytes, timed
from pyramids import backbone_of, objective_of

OURS = "ours"
WAYS = {  # how neighborhoods are written, or the one plain way
    "HDiT": {"dense mask": ("plain.hdit", {"way": "mask"}), "gather": ("plain.hdit", {"way": "gather"})},
    "MaskDiT": {"plain": ("plain.maskdit", {})},
    "UNet": {"plain": ("plain.unet", {})},
    "nested UNet": {"plain": ("plain.unet", {})},
}
UNET = {64: 32, 32: 64, 16: 96, 8: 128}


def _hourglass(side: int) -> tuple[Any, Any]:
    from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
    from pixelspace.recipes.hdit import objective_at

    return HDiTConfig((Level(128, 2, Neighborhood()), Level(256, 2, Global()))), objective_at(side)


def _masked() -> tuple[Any, Any]:
    from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
    from pixelspace.noise.levels import LogNormal
    from pixelspace.noise.process import EDM, Process
    from pixelspace.objectives.masked import Masked, MaskRatio

    backbone = MaskDiTConfig(192, 4, 6, (64, 64), 4, channels=3, num_classes=8, decoder=Decoder(96, 2, 6))
    return backbone, Masked(Process(EDM(0.5)), LogNormal(), (4, 4), MaskRatio(0.5), mae=0.1)


def _pyramid(*sides: int) -> tuple[Any, Any]:
    return backbone_of(sides, UNET, num_classes=8), objective_of(sides)


CASES: dict[str, tuple[str, int, int, Callable[[], tuple[Any, Any]]]] = {  # system, pixels, batch, network
    "HDiT 64 px, batch 8": ("HDiT", 64, 8, partial(_hourglass, 64)),
    "HDiT 256 px, batch 1": ("HDiT", 256, 1, partial(_hourglass, 256)),
    "MaskDiT 64 px, batch 8": ("MaskDiT", 64, 8, _masked),
    "UNet 64 px, batch 4": ("UNet", 64, 4, partial(_pyramid, 64)),
    "nested UNet 64 + 32 px, batch 4": ("nested UNet", 64, 4, partial(_pyramid, 64, 32)),
}
MODES = ("eager", "compiled")


def cell_of(case: str, way: str, mode: str, given: argparse.Namespace) -> Callable[[], Any]:
    """What builds the cell of a case, ours or written in some other way."""
    from pixelspace.data.emoji import Emoji
    from pixelspace.data.loader import Data
    from pixelspace.training.stage import Stage

    system, side, batch, network = CASES[case]
    backbone, objective = network()
    stage = Stage(
        name="step",
        backbone=backbone,
        objective=objective,
        data=Data(Emoji()),
        size=(side, side),
        batch=batch,
        images=batch * 1000,
        precision=given.precision,
    )
    plain = None
    if way != OURS:
        name, settings = WAYS[system][way]
        plain = partial(import_module(name).plain, **settings)
    return made(stage, given.device, plain, mode == "compiled")


def peak(case: str, way: str, mode: str, given: argparse.Namespace) -> int:
    """The bytes that a step, the third, needs at its fullest above weights, moments and average."""
    cell = cell_of(case, way, mode, given)()
    for _ in range(2):
        cell.step()
    forget_peak(given.device)
    before = held_bytes(given.device)
    cell.step()
    return peak_bytes(given.device) - before


def _peak_elsewhere(case: str, way: str, mode: str, given: argparse.Namespace) -> int:
    command = [sys.executable, str(Path(__file__).with_name("step.py")), "--device", given.device]
    command += ["--precision", given.precision, "--peak", case, way, mode]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **RETURNS_MEMORY})
    return json.loads(ran.stdout)


def report(given: argparse.Namespace) -> None:
    """Ours against the others in one run, round by round; compiled, against the first other way alone."""
    print("\n| network | written | mode | images/s | times the first row | optimiser + average | peak MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in given.cases:
        system, _, batch, _ = CASES[case]
        others = list(WAYS[system])
        written = {"eager": others, "compiled": others[:1]}
        ways = [(way, mode) for mode in given.modes for way in (*written[mode], OURS)]
        cells = {(way, mode): cell_of(case, way, mode, given)() for way, mode in ways}
        times = timed(cells, given.repeats, given.device)
        for way, mode in ways:
            took = times[way, mode]
            first = times[ways[0]]["step"]
            rates = [batch / step for step in took["step"]]
            share = median(took["update"]) / median(took["step"])
            row = [
                case,
                way,
                mode,
                f"{median(rates):.2f} ({min(rates):.2f} - {max(rates):.2f})",
                f"{median(first) / median(took['step']):.2f}",
                f"{share:.1%}",
                f"{_peak_elsewhere(case, way, mode, given) / 2**20:.0f}",
            ]
            print(f"| {' | '.join(row)} |", flush=True)
