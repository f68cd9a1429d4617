"""How much memory a training step holds, found without running it.

Weights, gradients, moments and their average are counted from the network; what autograd keeps for the backward pass
is found by a forward pass of tensors that have no numbers.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from pixelspace.growth.freeze import freeze
from pixelspace.random import Rng
from pixelspace.training.preview import autocast
from pixelspace.training.stage import Stage
from pixelspace.types import Batch, Cond

_CPU = torch.device("cpu")


_CPU = torch.device("cpu")


class _Shaped(Tensor):
    """A tensor of the CPU without numbers: operations see a tensor of the meta device in its place.

    Torch's own (`FakeTensorMode`) does the same and takes 1.5 times as long; while its mode is on, whatever is made is
    a fake, tables that are kept for later, too. Tensors of the meta device alone are not cast by autocast.
    """

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor) -> "_Shaped":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, meta.shape, strides=meta.stride(), storage_offset=meta.storage_offset(), dtype=meta.dtype, device=_CPU
        )
        made.meta = meta
        return made

    def tolist(self) -> Any:
        """Zeros: tables that are made from its numbers are as large."""
        return torch.zeros(self.shape, dtype=self.dtype).tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        seen: dict[int, _Shaped] = {}

        def bare(one: Any) -> Any:
            if isinstance(one, _Shaped):
                seen[id(one.meta)] = one
                return one.meta
            if isinstance(one, Tensor):
                return one if one.ndim == 0 else one.to("meta")
            return torch.device("meta") if isinstance(one, torch.device) else one

        def shaped(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            return seen[id(one)] if id(one) in seen else cls(one)

        return tree_map(shaped, func(*tree_map(bare, args), **tree_map(bare, kwargs or {})))


def _shaped(*shape: int, strides: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    if strides is None:
        return _Shaped(torch.empty(shape, dtype=dtype, device="meta"))
    return _Shaped(torch.empty_strided(shape, strides, dtype=dtype, device="meta"))


def _nbytes(tensor: Tensor) -> int:
    inner = tensor.meta if isinstance(tensor, _Shaped) else tensor
    return inner.untyped_storage().nbytes()


@dataclass(frozen=True)
class _Silent(Rng):
    """Noise of its shape alone."""

    def noise(self, purpose: str, pos: Tensor, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        return _shaped(len(pos), *shape)


def _batch(stage: Stage, batch: int) -> Batch:
    pairs = _shaped(batch, 2, dtype=torch.int64)
    cond = {"label": _shaped(batch, dtype=torch.int64), "size": pairs, "corner": pairs}
    null: Cond = {}
    if stage.text is not None and stage.backbone.text_widths is not None:
        (width, pooled), length = stage.backbone.text_widths, stage.text.length
        words = {"text": _shaped(batch, length, width), "pooled": _shaped(batch, pooled)}
        cond |= {**words, "text_mask": _shaped(batch, length, dtype=torch.bool)}
        null = {name: cond[name][:1] for name in ("text", "pooled", "text_mask")}
    return Batch(_shaped(batch, *stage.shape), cond, torch.arange(batch), null)


def _likeness(unit: nn.Module) -> Hashable:
    """Equal for modules that differ in their numbers alone: the types of all parts and their settings, which do not
    begin with an underscore."""

    def of(part: nn.Module) -> Hashable:
        own = vars(part).items()
        settings = {key: repr(what) for key, what in own if key[0] != "_" and key not in _OF_EVERY_MODULE}
        held = chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
        sizes = ((name, one.shape, one.dtype, one.requires_grad) for name, one in held)
        return type(part), part.training, tuple(sorted(settings.items())), tuple(sizes)

    return tuple((name, of(part)) for name, part in unit.named_modules())


_OF_EVERY_MODULE = vars(nn.Module()).keys()


def _form(one: Any) -> Hashable:
    return (one.shape, one.stride(), one.dtype, one.requires_grad) if isinstance(one, Tensor) else one


class _Run(NamedTuple):
    """What came of a unit: its output, which of what was given to it (and -1: of its output) it keeps, tables that it
    shares with others, and bytes that are its own."""

    out: Tensor
    places: frozenset[int]
    tables: list[Tensor]
    own: int


class _Ledger:
    """What autograd keeps, by storage, so that nothing counts twice. Units of one likeness are run once."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.kept: dict[int, Tensor] = {}
        self.more = 0
        self.runs: dict[Hashable, _Run] = {}
        self.weights = {self.storage(one) for one in weights}

    @staticmethod
    def storage(tensor: Tensor) -> int:
        inner = tensor.meta if isinstance(tensor, _Shaped) else tensor
        return inner.untyped_storage()._cdata

    def note(self, tensor: Tensor) -> Tensor:
        self.kept[self.storage(tensor)] = tensor
        return tensor

    def _first(self, forward: Callable[..., Tensor], given: tuple[Any, ...]) -> _Run:
        before, self.kept = self.kept, {}
        out = forward(*given)
        kept, self.kept = self.kept, before
        ends = {self.storage(one): i for i, one in enumerate(given) if isinstance(one, Tensor)}
        ends[self.storage(out)] = -1
        inside = {key: one for key, one in kept.items() if key not in ends and key not in self.weights}
        tables = [one for one in inside.values() if not isinstance(one, _Shaped)]
        own = sum(_nbytes(one) for one in inside.values() if isinstance(one, _Shaped))
        return _Run(out, frozenset(ends[key] for key in kept.keys() & ends.keys()), tables, own)

    def run(self, unit: nn.Module, forward: Callable[..., Tensor], again: bool, *given: Any) -> Tensor:
        """What the unit gives; what it keeps is noted, of one that is computed `again` what enters it."""
        key = _likeness(unit), tuple(map(_form, given))
        if key not in self.runs:
            with torch.set_grad_enabled(not again):
                self.runs[key] = self._first(forward, given)
        known = self.runs[key]
        learns = any(one.requires_grad for one in chain(unit.parameters(), filter(torch.is_tensor, given)))
        out = _shaped(*known.out.shape, strides=known.out.stride(), dtype=known.out.dtype).requires_grad_(learns)
        places = [i for i, one in enumerate(given) if isinstance(one, Tensor)] if again else known.places
        for one in (*((*given, out)[i] for i in places), *known.tables):
            self.note(one)
        self.more += known.own
        return out

    @property
    def bytes(self) -> int:
        return self.more + sum(_nbytes(one) for key, one in self.kept.items() if key not in self.weights)


def _kept_bytes(network: nn.Module, stage: Stage, batch: int) -> int:
    """`activation_bytes` of the stage's network on the meta device, what is frozen frozen."""
    learns = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    everything = chain(network.named_parameters(), network.named_buffers())
    tensors = {name: _Shaped(one.detach()).requires_grad_(learns.get(name, False)) for name, one in everything}
    ledger = _Ledger(tensors[name] for name in learns)

    def forward(x: Tensor, c_noise: Tensor, cond: Cond, **keep: Tensor) -> Tensor:
        with autocast(stage, _CPU):
            return functional_call(network, tensors, (x, c_noise, cond), keep)

    given = _batch(stage, batch)
    draw = stage.objective.draw(given, max(batch, stage.batch), 0.0, _Silent(0))
    units = list(network.units())  # type: ignore[operator]
    try:
        for unit in units:
            unit.forward = partial(ledger.run, unit, unit.forward, stage.checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(ledger.note, lambda tensor: tensor):
            stage.objective.loss(forward, given, draw).sum()
    finally:
        for unit in units:
            del unit.forward
    return ledger.bytes


def _blank(stage: Stage) -> nn.Module:
    """The stage's network on the meta device, what is frozen frozen."""
    with torch.device("meta"):
        network = stage.backbone.build()
    freeze(network, stage.freeze)
    return network


def activation_bytes(stage: Stage, batch: int = 1, *, network: nn.Module | None = None) -> int:
    """Bytes that autograd saves for one forward pass of `batch` images, the first of the stage, weights not counted.

    Frozen linear maps do not save their inputs; with the stage's checkpointing a block saves only what enters it.
    `network` is the stage's own on the meta device, frozen as it says, if there is one already.
    """
    return _kept_bytes(_blank(stage) if network is None else network, stage, batch)


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Memory:
    """Bytes that a step holds on its device; activations are what autograd keeps of the images computed at once."""

    weights: int
    gradients: int
    moments: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of it together, which a step holds where its backward pass begins."""
        return self.weights + self.gradients + self.moments + self.average + self.activations


def predicted(stage: Stage, network: nn.Module | None = None, activations: int | None = None) -> Memory:
    """What a step of the stage holds on one device; its network on the meta device, frozen as it says, and the bytes of
    its activations are computed unless they are known."""
    network = _blank(stage) if network is None else network
    kept = _kept_bytes(network, stage, stage.micro or stage.batch) if activations is None else activations
    weights = sum(one.nbytes for one in chain(network.parameters(), network.buffers()))
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = sum(one.nbytes for one in learnt)
    still = sum(one.nbytes for one in network.parameters() if not one.requires_grad)
    average = sum(one.nbytes for one in network.state_dict().values()) - still if stage.ema_device == "same" else 0
    return Memory(weights, gradients, sum(map(stage.optimizer.moment_bytes, learnt)), average, kept)
