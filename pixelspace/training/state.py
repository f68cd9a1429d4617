"""What a run is at a step: weights, their average, the optimiser's moments and the step; how it is kept and brought
back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelspace.errors import CheckpointError
from pixelspace.nn.weights import load_weights
from pixelspace.training import checkpoint
from pixelspace.training.ema import Average
from pixelspace.training.optim import load_state_by_name, state_by_name
from pixelspace.training.stage import Inherit


@dataclass
class State:
    """What a checkpoint holds."""

    network: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    step: int = 0
    bad_steps: list[int] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)


def tensors_of(state: State) -> dict[str, Mapping[str, Tensor]]:
    """Its tensors, as a checkpoint keeps them."""
    return {
        "model": state.network.state_dict(),
        "ema": state.average.tensors,
        "optimizer": state_by_name(state.optimizer),
    }


def _load_average(state: State, tensors: Mapping[str, Tensor], updates: int) -> None:
    device = next(state.network.parameters()).device
    state.average.tensors = {name: tensors[name].to(device).clone() for name in state.average.tensors}
    state.average.updates = updates


def restore(state: State, parts: Mapping[str, Mapping[str, Tensor]], saved: Mapping[str, Any]) -> None:
    """Brings back what a checkpoint kept: its tensors, and what it `saved` beside them."""
    load_weights(state.network, parts["model"])
    _load_average(state, parts["ema"], saved["ema_updates"])
    load_state_by_name(state.optimizer, parts["optimizer"])
    state.step, state.bad_steps, state.unreadable = saved["step"], saved["bad_steps"], saved["unreadable"]


def start_from(state: State, init: Inherit, ancestor: Path) -> None:
    """Weights, and on request average and moments, of an earlier stage's last checkpoint."""
    resumed = checkpoint.resume(ancestor / "checkpoints")
    if resumed is None:
        raise CheckpointError(f"{ancestor}: stage {init.stage!r} has no checkpoint to inherit; train it first")
    parts = resumed.contents.parts
    load_weights(state.network, parts["ema" if init.weights == "ema" else "model"])
    state.average = Average(state.network)
    if init.ema == "carry":
        _load_average(state, parts["ema"], resumed.contents.state["ema_updates"])
    if init.optimizer:
        load_state_by_name(state.optimizer, parts["optimizer"])
