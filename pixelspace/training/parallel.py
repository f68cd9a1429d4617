"""How the ranks of a run compute one network together: the only file that knows DDP and FSDP.

A global batch is shared out in `Stage.lanes` equal lanes of consecutive positions, and each rank takes as many. What a
sample is, its noise and its sigma follow from its position alone, so that only the rounding of sums depends on the
number of ranks; and where the reduction is exact not even that: gradients are made lane by lane, and added in the same
tree of pairs whatever the ranks.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel

import pixelspace
from pixelspace.config import to_data
from pixelspace.dist import Ranks, machine_world
from pixelspace.errors import UserError
from pixelspace.store import Piece, Rows
from pixelspace.training.ema import Average
from pixelspace.training.low_memory import AdamW8bit
from pixelspace.training.optim import load_state_by_name
from pixelspace.training.run import differences
from pixelspace.training.stage import Recipe, Stage
from pixelspace.training.state import State, tensors_of

Sharding = Literal["none", "full", "node"]


def check_ranks(stage: Stage, world: int, sharding: Sharding) -> None:
    """Raises UserError where so many ranks cannot share a stage's batch, or not in the way it asks for."""
    lanes = stage.shared_lanes
    fits = [n for n in range(1, lanes + 1) if lanes % n == 0]
    if lanes % world:
        of = f"{world} ranks cannot share the {lanes} lanes of its batch of {stage.batch}"
        raise UserError(
            f"stage {stage.name!r}: {of}; take one of {fits} ranks, or set stages.N.lanes to a number that "
            f"{world} divides and that divides the batch"
        )
    if stage.reduction == "exact" and sharding != "none":
        raise UserError(
            f"stage {stage.name!r}: reduction 'exact' needs whole gradients on each rank, and --shard {sharding} has "
            f"parts of them; leave --shard out, or set reduction to 'fast'"
        )
    if stage.ema_device == "cpu" and sharding != "none":
        raise UserError(
            f"stage {stage.name!r}: --shard {sharding} leaves each rank little of the average, on its own device; set "
            f"ema_device to 'same'"
        )
    if isinstance(stage.optimizer, AdamW8bit) and sharding != "none":
        raise UserError(
            f"stage {stage.name!r}: moments of 8 bits stand in blocks that --shard {sharding} would cut; set "
            f"optimizer.type to AdamW, or leave --shard out"
        )
    own = stage.batch // (lanes if stage.reduction == "exact" else world)
    micro = min(stage.micro or own, own)
    if own % micro:
        sizes = [n for n in range(1, own + 1) if own % n == 0]
        what = "a lane" if stage.reduction == "exact" else f"each of {world} ranks"
        raise UserError(f"stage {stage.name!r}: micro {stage.micro} must divide the {own} images of {what}: {sizes}")


def _code() -> str:
    """SHA-256 of the package's own source."""
    found = hashlib.sha256()
    root = Path(pixelspace.__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def check_alike(ranks: Ranks, recipe: Recipe, device: torch.device, sharding: Sharding) -> None:
    """Raises UserError, on all ranks, where one has another recipe, code, torch, or kind of device."""
    if ranks.world == 1:
        return
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    said = {"code": _code(), "torch": torch.__version__, "device": kind, "shard": sharding}
    cards = ranks.meet({**said, "recipe": to_data(recipe)})
    for rank, card in enumerate(cards):
        for what in said:
            if card[what] != cards[0][what]:
                raise UserError(f"rank {rank} has another {what} than rank 0: {card[what]}, not {cards[0][what]}")
        for path, first, other in differences(cards[0]["recipe"], card["recipe"]):
            raise UserError(
                f"rank {rank} has another recipe than rank 0: {path} is {json.dumps(other):.60}, "
                f"not {json.dumps(first):.60}"
            )


def _idles(stage: Stage) -> bool:
    """Whether some weights may be without a gradient in some step, on some rank: what stands for masked tokens is where
    none is masked."""
    shown = (stage.objective.kept(*stage.shape[1:], progress) for progress in (0.0, 1.0))
    return stage.objective.idles or (stage.backbone.keep_patch is not None and None in shown)


def _shapes(stage: Stage) -> int:
    """How many shapes of a batch a network sees in the stage: sizes of images, by numbers of patches shown."""
    sizes = stage.data.bucket_sizes(stage.size)
    moments = (i / 1000 for i in range(1001))
    shown = {stage.objective.kept(*stage.shape[1:], progress) for progress in moments}
    return len(sizes) * len(shown)


class _Tree:
    """Sums of gradients in a tree of pairs, so that a part of it that two runs share has the same bits."""

    def __init__(self) -> None:
        self.sums: list[tuple[int, dict[str, Tensor]]] = []  # (lanes, gradients)

    def add(self, gradients: dict[str, Tensor]) -> None:
        lanes = 1
        while self.sums and self.sums[-1][0] == lanes:
            _, before = self.sums.pop()
            gradients, lanes = _added(before, gradients), 2 * lanes
        self.sums.append((lanes, gradients))

    def take(self) -> dict[str, Tensor]:
        ((_, gradients),) = self.sums
        self.sums = []
        return gradients


def _added(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    both = [name for name in a if name in b]
    sums = torch._foreach_add(  # pyright: ignore[reportPrivateImportUsage]
        [a[name] for name in both], [b[name] for name in both]
    )
    return {**a, **b, **dict(zip(both, sums, strict=True))}


class Engine:
    """How one rank computes its share of each batch of a stage; alone, all of it.

    `rows` are its places in the global batch, `parts` of them go through the network at once.
    """

    def __init__(self, stage: Stage, ranks: Ranks | None = None, sharding: Sharding = "none"):
        self.ranks = ranks or Ranks()
        check_ranks(stage, self.ranks.world, sharding)
        self.shards = sharding != "none" and self.ranks.world > 1
        self._sharding = sharding
        own = stage.batch // self.ranks.world
        self.rows = range(self.ranks.rank * own, (self.ranks.rank + 1) * own)
        self._tree = _Tree() if stage.reduction == "exact" else None
        self._lane = stage.batch // stage.shared_lanes
        whole = self._lane if self._tree else own
        micro = min(stage.micro or whole, whole)
        self.parts = [range(start, start + micro) for start in self.rows[::micro]]
        self._module: Any = None
        self._idle = _idles(stage)
        # DDP and FSDP take the mean over ranks, and a loss here is divided by the global batch already.
        self._scale = self.ranks.world if self._tree is None else 1

    def shard(self, network: nn.Module, device: torch.device) -> None:
        """Leaves of each of the network's weights this rank's rows on the device, where the sharding says so."""
        world, near = self.ranks.world, machine_world()
        if not self.shards:
            return
        if self._sharding == "node" and 1 < near < world:
            mesh = init_device_mesh(device.type, (world // near, near), mesh_dim_names=("between", "within"))
        else:
            mesh = init_device_mesh(device.type, (world,))
        for unit in network.units():  # type: ignore[operator]
            fully_shard(unit, mesh=mesh)
        fully_shard(network, mesh=mesh)
        network.to(device)

    def shared_out(self, state: State, stage: Stage, device: torch.device) -> State:
        """What a rank keeps of a state that it has whole."""
        parts, average = tensors_of(state), state.average
        self.shard(state.network, device)
        rows = held_rows(state.network)
        assert rows is not None
        mine = {
            part: {
                name: one if one.ndim == 0 else one[(at := rows(part, name, tuple(one.shape))).start : at.stop].clone()
                for name, one in tensors.items()
            }
            for part, tensors in parts.items()
        }
        mine = placed(mine, state.network)
        shared = State(state.network, Average(state.network), stage.optimizer.build(state.network), state.step)
        shared.average.load(mine["ema"], average.updates, average.born)
        load_state_by_name(shared.optimizer, mine["optimizer"])
        return shared

    def wrap(self, network: nn.Module, stage: Stage) -> Callable[..., Tensor]:
        """What is called as the network in training; compiled, for each shape of a batch, where the stage says so."""
        compiled = stage.compile
        if compiled:
            torch._dynamo.reset()  # an earlier stage's graphs count towards the limit, and make this one's dynamic
            # Beyond it torch would run the network as it stands, and slowly.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _shapes(stage) + 1)
        if self.shards:
            if compiled:
                for unit in network.units():  # type: ignore[operator]
                    unit.compile(dynamic=False)
            self._module = network
            return network
        called = torch.compile(network, dynamic=False) if compiled else network
        if self.ranks.world == 1 or self._tree is not None:
            return called
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._module = DistributedDataParallel(
                called, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=self._idle
            )
        return self._module

    @contextmanager
    def accumulating(self, part: range) -> Iterator[None]:
        """For the forward and backward pass of a part: ranks talk to each other with the last one only."""
        last = part.stop == self.rows.stop
        if self.shards:
            self._module.set_requires_gradient_sync(last)
        replicated = isinstance(self._module, DistributedDataParallel)
        with self._module.no_sync() if replicated and not last else nullcontext(), warnings.catch_warnings():
            # Nothing is done in place to what a network returns.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
            yield

    def backward(self, loss: Tensor, network: nn.Module, part: range) -> None:
        """The backward pass of a part's share of the batch's loss."""
        (loss * self._scale).backward()
        if self._tree is not None and part.stop % self._lane == 0:
            self._tree.add({name: one.grad for name, one in network.named_parameters() if one.grad is not None})
            network.zero_grad(set_to_none=True)

    def finish(self, network: nn.Module) -> None:
        """After the last part: each rank has the whole batch's gradients, or its rows of them."""
        if self._tree is None:
            return
        gradients, ranks = self._tree.take(), self.ranks
        for apart in (1 << bit for bit in range(ranks.world.bit_length() - 1)):
            gradients = self._exchanged(gradients, network, ranks.rank ^ apart)
        for name, one in network.named_parameters():
            one.grad = gradients.get(name)

    def _exchanged(self, gradients: dict[str, Tensor], network: nn.Module, peer: int) -> dict[str, Tensor]:
        """The sum with a peer's, which has the same sum: of two numbers it has no order."""
        learnt = [(name, one) for name, one in network.named_parameters() if one.requires_grad]
        device = learnt[0][1].device
        has = torch.tensor([name in gradients for name, _ in learnt], device=device)
        theirs = torch.empty_like(has)
        _swapped(has, theirs, peer)
        mine = [gradients[name].flatten() for (name, _), there in zip(learnt, has.tolist(), strict=True) if there]
        wanted = [(name, one) for (name, one), there in zip(learnt, theirs.tolist(), strict=True) if there]
        sent = torch.cat(mine) if mine else torch.empty(0, device=device)
        found = sent.new_empty(sum(one.numel() for _, one in wanted))
        _swapped(sent, found, peer)
        pieces = found.split([one.numel() for _, one in wanted])
        other = {name: piece.view_as(one) for (name, one), piece in zip(wanted, pieces, strict=True)}
        return _added(gradients, other) if self.ranks.rank < peer else _added(other, gradients)

    def clip(self, network: nn.Module, most: float) -> Tensor:
        """Clips the gradient's norm, and gives what it was: (), the same on all ranks."""
        norm = nn.utils.clip_grad_norm_(network.parameters(), most)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _swapped(sent: Tensor, found: Tensor, peer: int) -> None:
    operations = [
        torch.distributed.P2POp(torch.distributed.isend, sent, peer),
        torch.distributed.P2POp(torch.distributed.irecv, found, peer),
    ]
    for work in torch.distributed.batch_isend_irecv([one for one in operations if one.tensor.numel()]):
        work.wait()


def _first_row(tensor: DTensor) -> int:
    """Of the rows that this rank holds."""
    shape = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return shape[1][0]


def _is_copy(tensor: DTensor) -> bool:
    """Whether a rank before this one holds the same rows."""
    coordinate = tensor.device_mesh.get_coordinate() or ()
    return any(at and place.is_replicate() for at, place in zip(coordinate, tensor.placements, strict=True))


def owned(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor | Piece]:
    """What of tensors this rank is to store, so that all of them together store each number once."""
    found: dict[str, Tensor | Piece] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            if ranks.first:
                found[name] = tensor
        elif (rows := tensor.to_local()).numel() and not _is_copy(tensor):
            found[name] = Piece(rows, _first_row(tensor), len(tensor))
    return found


def _owner(part: str, name: str) -> str:
    """The parameter or buffer that a stored tensor is of."""
    return name.rpartition(".")[0] if part == "optimizer" else name


def held_rows(network: nn.Module) -> Rows | None:
    """Which rows of stored tensors this rank's share of the network needs; None: all."""
    own = {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, DTensor)}

    def rows(part: str, name: str, shape: tuple[int, ...]) -> range:
        tensor = own.get(_owner(part, name))
        if tensor is None or shape != tensor.shape:
            return range(shape[0])
        start = _first_row(tensor)
        return range(start, start + len(tensor.to_local()))

    return rows if own else None


def placed(parts: Mapping[str, Mapping[str, Tensor]], network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What was read by `held_rows`, each tensor placed as the parameter that it is of."""
    own = network.state_dict()

    def as_own(part: str, name: str, rows: Tensor) -> Tensor:
        like = own.get(_owner(part, name))
        if not isinstance(like, DTensor) or rows.ndim != like.ndim:
            return rows
        mesh, places = like.device_mesh, like.placements
        rows = rows.to(like.to_local().device)
        return DTensor.from_local(rows, mesh, places, shape=like.shape, stride=like.stride(), run_check=False)

    return {part: {name: as_own(part, name, rows) for name, rows in some.items()} for part, some in parts.items()}


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which ranks hold rows, whole on each of them, which all must ask for."""
    return {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in tensors.items()}
