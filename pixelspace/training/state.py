"""What a run is at a step: weights, their average, the optimiser's moments and the step; how it is kept and brought
back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pixelspace.nn.weights import load_weights
from pixelspace.training.ema import Average
from pixelspace.training.optim import load_state_by_name, state_by_name


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


def restore(state: State, parts: Mapping[str, Mapping[str, Tensor]], saved: Mapping[str, Any]) -> None:
    """Brings back what a checkpoint kept: its tensors, and what it `saved` beside them."""
    load_weights(state.network, parts["model"])
    state.average.load(parts["ema"], saved["ema_updates"], saved.get("ema_born", {}))
    load_state_by_name(state.optimizer, parts["optimizer"])
    state.step, state.bad_steps, state.unreadable = saved["step"], saved["bad_steps"], saved["unreadable"]
