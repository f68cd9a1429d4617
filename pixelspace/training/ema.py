"""An exponential moving average of a network's weights, warmed up (k-diffusion; Crowson et al. 2024)."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pixelspace.config import value

_AT_ONCE = 64  # tensors


@value
class EMA:
    """The decay after t updates is 1 - (1 + t)^-power, at most `max_decay`; the first update copies the weights.

    With power 0 it is `max_decay` from the first update on.
    """

    power: float = 0.75
    max_decay: float = 0.9999

    def __post_init__(self) -> None:
        if self.power < 0 or not 0 <= self.max_decay <= 1:
            raise ValueError(f"EMA: needs power >= 0 and max_decay in [0, 1], found {self.power}, {self.max_decay}")

    def decay(self, updates: int) -> float:
        """The weight of the past in update number `updates`, counted from 0."""
        if not self.power:
            return self.max_decay
        return min(max(1 - (1 + updates) ** -self.power, 0.0), self.max_decay)


def _move(past: list[Tensor], towards: list[Tensor], weight: float, finite: Tensor | None) -> None:
    """lerp, in place; what is only known on another device to be finite is not waited for."""
    if finite is None or finite.device.type == "cpu":
        if finite is None or finite:
            torch._foreach_lerp_(past, towards, weight)  # pyright: ignore[reportPrivateImportUsage]
        return
    if weight == 1:
        for tensor, new in zip(past, towards, strict=True):
            tensor.copy_(torch.where(finite, new, tensor))
        return
    for start in range(0, len(past), _AT_ONCE):  # the difference of all at once is as large as the network
        some = past[start : start + _AT_ONCE]
        way = torch._foreach_sub(towards[start : start + _AT_ONCE], some)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(way, finite.float() * weight)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(some, way)  # pyright: ignore[reportPrivateImportUsage]


class Average:
    """The averaged state of a network, by name: parameters in float32 or better, buffers as they are.

    Of parameters that do not learn it is the network's own tensor. `born` says after how many updates a tensor came in,
    for those that came later than the first: each is warmed up by its own count.

    On the "cpu" it takes no memory of another device: each update copies the weights to the host without waiting, and
    the next, or whoever asks for `tensors`, averages them there.
    """

    def __init__(self, network: nn.Module, where: Literal["same", "cpu"] = "same"):
        own = network.state_dict()
        self.still = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self.learnt = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.updates = 0
        self.born: dict[str, int] = {}
        self._away = where == "cpu"
        self._tensors = {name: one if name in self.still else self._placed(one).copy_(one) for name, one in own.items()}
        self._sent = {name: self._placed(own[name]) for name in self.learnt if self._away}
        self._waiting: tuple[torch.Event | None, EMA, Tensor | None] | None = None

    def _placed(self, tensor: Tensor) -> Tensor:
        if not self._away:
            return torch.empty_like(tensor)
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        self._catch_up()
        return self._tensors

    def load(self, tensors: Mapping[str, Tensor], updates: int, born: Mapping[str, int]) -> None:
        """Goes on from another average's tensors, of names that are given, after so many updates; of parameters that do
        not learn it stays the network's own."""
        for name in (self.tensors.keys() & tensors.keys()) - self.still:
            self.tensors[name].copy_(tensors[name])
        self.updates, self.born = updates, dict(born)

    def restart(self, network: nn.Module, names: Iterable[str]) -> None:
        """Some tensors are the network's own again."""
        own = network.state_dict()
        for name in names:
            self.tensors[name].copy_(own[name])

    def _catch_up(self) -> None:
        """Averages what was sent to the host."""
        if self._waiting is None:
            return
        (arrived, ema, finite), self._waiting = self._waiting, None
        if arrived is not None:
            arrived.synchronize()
        self._move(self._sent, ema, self.updates - 1, finite)

    def _move(self, current: Mapping[str, Tensor], ema: EMA, updates: int, finite: Tensor | None) -> None:
        for born in sorted({self.born.get(name, 0) for name in self.learnt}):
            names = [name for name in self.learnt if self.born.get(name, 0) == born]
            past, towards = [self._tensors[name] for name in names], [current[name] for name in names]
            _move(past, towards, 1 - ema.decay(updates - born), finite)

    @torch.no_grad()
    def update(self, network: nn.Module, ema: EMA, finite: Tensor | None = None) -> None:
        """Moves towards the network's weights by one step; where `finite` () is false, that step changes nothing."""
        self._catch_up()
        current = dict(network.named_parameters())
        if self._away:
            names = list(self._sent)
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                list(self._sent.values()), [current[name] for name in names], non_blocking=True
            )
            known = None if finite is None else finite.to("cpu", non_blocking=True)
            device = next(iter(current.values())).device
            arrived = None if device.type == "cpu" else torch.Event(device)
            if arrived is not None:
                arrived.record()
            self._waiting = arrived, ema, known
        else:
            self._move(current, ema, self.updates, finite)
        for name, buffer in network.named_buffers():
            if name in self._tensors:
                self._tensors[name].copy_(buffer)
        self.updates += 1
