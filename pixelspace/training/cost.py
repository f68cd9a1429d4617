"""What training costs on a machine that need not be at hand: memory, time, data, storage and what failures take.

All of it is arithmetic on two values: the `Work` of a stage, which `training.work` counts, and a `Machine`.

A stage may be shared out in three ways. `none`: every device holds weights, gradients, moments and average, and
gradients are reduced (DDP). `full`: all devices share them (FSDP2). `node`: the devices of a node share them, and nodes
are copies of each other (hybrid sharding).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pixelspace.config import value
from pixelspace.errors import UserError

Sharding = Literal["none", "node", "full"]
Precision = Literal["bf16", "tf32", "fp32"]
HOUR, DAY = 3600, 86400
_KEPT_LAST = 3  # checkpoints
_HOPELESS = 30  # mean times between failures from one checkpoint to the next


@value
class Machine:
    """`devices` of one kind, `per_node` to a node, at `price` an hour each (0: not known).

    `memory` is in bytes a device, of which the share `spare` is left to driver, workspaces and fragments. `flops` is
    the peak of bfloat16 in operations a second, of which TF32 has half; `fp32_flops` is that of float32 (0: a
    sixteenth, as an A100 has), and `efficiency` the share of them that a step reaches. `bandwidth` and
    `node_bandwidth` are bytes a second out of a device, to other nodes and within its own; traffic costs nothing while
    it takes no longer than the share `overlap` of the arithmetic that it runs beside.

    `write` is how fast a checkpoint is written, hashed and read back, in bytes a second. A device fails every `mtbf`
    hours (0: never), and `restart` seconds pass until all train again.
    """

    devices: int
    memory: float
    flops: float
    fp32_flops: float = 0.0
    efficiency: float = 0.3
    spare: float = 0.1
    per_node: int = 8
    bandwidth: float = 25e9
    node_bandwidth: float = 250e9
    overlap: float = 0.5
    write: float = 1e9
    mtbf: float = 0.0
    restart: float = 300.0
    price: float = 0.0

    def __post_init__(self) -> None:
        if self.devices < 1 or self.per_node < 1:
            raise UserError(f"devices and per_node must be at least 1, found {self.devices} and {self.per_node}")
        if self.memory < 2**20:
            raise UserError(f"memory: {self.memory:g} bytes a device hold no network; is a unit missing, as in 80GB?")
        for name in ("flops", "bandwidth", "node_bandwidth", "write"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be positive, found {getattr(self, name):g}")
        for name in ("fp32_flops", "mtbf", "restart", "price"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} cannot be negative, found {getattr(self, name):g}")
        if not 0 < self.efficiency <= 1:
            raise UserError(f"efficiency must be in (0, 1], found {self.efficiency:g}")
        for name in ("overlap", "spare"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), found {getattr(self, name):g}")

    @property
    def room(self) -> float:
        """Bytes of a device that a stage may fill."""
        return (1 - self.spare) * self.memory

    def peak(self, precision: Precision) -> float:
        """Operations a second of a device."""
        if precision == "fp32":
            return self.fp32_flops or self.flops / 16
        return self.flops if precision == "bf16" else self.flops / 2


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage asks of any machine.

    Ranks share out the `lanes` of a batch. `forward` and `backward` are multiply-accumulates on one image, a mean over
    the stage; `reading` those of a frozen text encoder, which takes `reading_bytes`. Of `parameters`, `learnt` learn,
    and `gathered` are whole at once where they are sharded. On one device alone weights, gradients, moments and average
    take `state_bytes`; a checkpoint takes `checkpoint_bytes`. `sample_bytes` is one sample as loaders hand it over.
    What `uncounted` names is in none of these. One that is not `shardable` has all of its state on every device.
    """

    name: str
    batch: int
    lanes: int
    images: int
    save_images: int
    keep_every: int
    precision: Precision
    parameters: int
    learnt: int
    gathered: int
    state_bytes: int
    checkpoint_bytes: int
    forward: float
    backward: float
    reading: float
    reading_bytes: int
    sample_bytes: int
    uncounted: str = ""
    shardable: bool = True

    @property
    def steps(self) -> int:
        return self.images // self.batch

    def flops(self, checkpointing: bool) -> float:
        """Operations of training on one image, two for each multiply-accumulate; checkpointed blocks run forwards
        twice."""
        return 2 * (self.forward * (2 if checkpointing else 1) + self.backward + self.reading)


Activations = Callable[[bool], tuple[int, int]]
"""With activation checkpointing or without, the bytes kept for the backward pass of one image, and of each one more."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to run a stage's step: `micro` images at once on a device, `accumulation` times, which takes `bytes`; 0
    images: there is no room for that many. In seconds, `compute` is the arithmetic, `traffic` what travels, and `step`
    both with what hides taken off."""

    sharding: Sharding
    checkpointing: bool
    micro: int
    accumulation: int
    bytes: float
    compute: float
    traffic: float
    step: float


@dataclass(frozen=True, slots=True)
class Saving:
    """Checkpoints every `images`, that is every `interval` seconds of training, and the share of the whole that goes to
    writing them and to failures."""

    images: int
    interval: float
    lost: float


@dataclass(frozen=True, slots=True)
class Cost:
    """A stage on a machine: the layouts that were weighed and the one chosen, the work's seconds and all that pass with
    what `saving` loses, what loaders must deliver a second, checkpoints `kept` at the end. `best` is the interval that
    loses least (None: nothing fails), `price` that of all devices (0: not known)."""

    work: Work
    layouts: tuple[Layout, ...]
    chosen: Layout
    training_seconds: float
    seconds: float
    device_days: float
    price: float
    images_per_second: float
    bytes_per_second: float
    write_seconds: float
    kept: int
    kept_bytes: int
    saving: Saving
    best: Saving | None


@dataclass(frozen=True, slots=True)
class Total:
    """Of all stages, one after the other: seconds that pass, device-days, price (0: not known), and bytes of the
    checkpoints there are at the end, and of the one more there is while it is written."""

    seconds: float
    device_days: float
    price: float
    checkpoint_bytes: int


def check_devices(works: Sequence[Work], devices: int) -> None:
    """Raises UserError where so many devices do not share out the lanes of each stage's batch, with the nearest that
    do."""
    common = math.gcd(*(work.lanes for work in works))
    if common % devices == 0:
        return
    fit = [n for n in range(1, common + 1) if common % n == 0]
    near = [*[n for n in fit if n < devices][-1:], *[n for n in fit if n > devices][:1]]
    work = next(work for work in works if work.lanes % devices)
    divided = all(work.batch % devices == 0 for work in works)
    raise UserError(
        f"devices: {devices} cannot share the {work.lanes} lanes of a batch of {work.batch:,} (stage {work.name!r}); "
        f"nearest {' and '.join(map(str, near))}; those that can for all stages: {', '.join(map(str, fit))}"
        f"{f'; or set stages.*.lanes={devices}' if divided else ''}"
    )


def shares(machine: Machine, sharding: Sharding) -> int:
    """Over how many devices the state is shared out."""
    return {"none": 1, "node": machine.per_node, "full": machine.devices}[sharding]


def shardings(work: Work, machine: Machine) -> tuple[Sharding, ...]:
    """Those that differ on a machine, the simplest first."""
    n, nodes = machine.devices, machine.per_node
    if not work.shardable:
        return ("none",)
    return ("none", *(("node",) if 1 < nodes < n and n % nodes == 0 else ()), *(("full",) if n > 1 else ()))


def state_bytes(work: Work, machine: Machine, sharding: Sharding, rounds: int) -> float:
    """Bytes on a device before the first image: its share of weights, gradients, moments and average; the text encoder;
    and where weights are shared those that are gathered at once, with their gradients, and over several `rounds` of a
    step all gradients, which are only shared out after the last."""
    parts = shares(machine, sharding)
    gathered = 8 * work.gathered if parts > 1 else 0
    whole = 4 * work.learnt * (1 - 1 / parts) if rounds > 1 else 0
    return work.state_bytes / parts + gathered + whole + work.reading_bytes


def traffic_seconds(work: Work, machine: Machine, sharding: Sharding, rounds: int) -> float:
    """Of one step of `rounds` micro-batches, by rings, all in float32: gradients are reduced once (none); weights are
    gathered for each forward and each backward pass, and gradients scattered once (full); both within the node, and
    the shards of gradients reduced between nodes (node)."""
    n, nodes = machine.devices, machine.devices / machine.per_node
    parts = shares(machine, sharding)
    gradients, weights = 4 * work.learnt, 4 * work.parameters
    link = machine.node_bandwidth if n <= machine.per_node else machine.bandwidth
    if sharding == "none":
        return 2 * (n - 1) / n * gradients / link
    shared = (parts - 1) / parts * (2 * rounds * weights + gradients)
    if sharding == "full":
        return shared / link
    return shared / machine.node_bandwidth + 2 * (nodes - 1) / nodes * gradients / parts / machine.bandwidth


def layout(
    work: Work, machine: Machine, sharding: Sharding, checkpointing: bool, activations: tuple[int, int]
) -> Layout:
    """The step with the most images at once that there is room for."""
    mine, (one, each) = work.batch // machine.devices, activations

    def filled(micro: int) -> float:
        return state_bytes(work, machine, sharding, mine // micro) + one + each * (micro - 1)

    sizes = [micro for micro in range(mine, 0, -1) if mine % micro == 0]
    micro = next((micro for micro in sizes if filled(micro) <= machine.room), 0)
    rounds = mine // (micro or 1)
    compute = mine * work.flops(checkpointing) / (machine.peak(work.precision) * machine.efficiency)
    traffic = traffic_seconds(work, machine, sharding, rounds)
    # Gradients of plain copies travel in the last micro-batch alone; gathered weights in all of them.
    hidden = machine.overlap * compute / (rounds if sharding == "none" else 1)
    step = compute + max(0.0, traffic - hidden)
    least = filled(micro) if micro else min(map(filled, sizes))
    return Layout(sharding, checkpointing, micro, rounds, least, compute, traffic, step)


def layouts(work: Work, machine: Machine, activations: Activations) -> tuple[Layout, ...]:
    """All shardings without activation checkpointing, and with it unless one of them waits for nothing, which it could
    only make slower."""

    def tried(checkpointing: bool) -> tuple[Layout, ...]:
        saved = activations(checkpointing)
        return tuple(layout(work, machine, sharding, checkpointing, saved) for sharding in shardings(work, machine))

    plain = tried(False)
    return plain if any(one.micro and one.step == one.compute for one in plain) else (*plain, *tried(True))


def fastest(work: Work, machine: Machine, tried: tuple[Layout, ...]) -> Layout:
    """The first layout whose step is as short as any, give or take a twentieth: the simplest come first, and no step
    is known better.

    Raises:
        UserError: there is room for none.
    """
    fit = [one for one in tried if one.micro]
    if fit:
        least = min(one.step for one in fit)
        return next(one for one in fit if one.step <= 1.05 * least)
    nearest = min(tried, key=lambda one: one.bytes)
    before = state_bytes(work, machine, nearest.sharding, 1)
    share = "take more devices" if work.shardable else "allow sharding (ema_device same, reduction fast, plain AdamW)"
    raise UserError(
        f"stage {work.name!r}: no room: blocks checkpointed, sharding {nearest.sharding}, a step takes at least "
        f"{nearest.bytes / 1e9:.1f} GB a device ({before / 1e9:.1f} GB before any image), and there are "
        f"{machine.room / 1e9:.1f} ({machine.memory / 1e9:.1f} less {machine.spare:.0%}); {share}, or take "
        f"devices of {math.ceil(nearest.bytes / (1 - machine.spare) / 1e9)} GB, or a smaller network or size (--set)"
    )


def saves_kept(work: Work) -> int:
    """How many checkpoints stay: the last three and every `keep_every`-th, the end's among them."""
    every = max(1, work.save_images // work.batch)
    saved = [*range(every, work.steps, every), work.steps]
    return len({*saved[-_KEPT_LAST:], *(step for step in saved if step % (every * work.keep_every) == 0)})


def expected(interval: float, write: float, mtbf: float, restart: float) -> float:
    """Seconds that pass for each second of training when `write` seconds of saving follow every `interval`, and
    failures come at random, `mtbf` seconds apart in the mean (inf: never; Daly 2006)."""
    if mtbf == math.inf:
        return 1 + write / interval
    return mtbf / interval * math.exp(restart / mtbf) * math.expm1((interval + write) / mtbf)


def best_interval(write: float, mtbf: float) -> float:
    """Seconds of training between checkpoints that lose the least: Young's sqrt(2 write mtbf) with Daly's terms of
    higher order (Daly 2006)."""
    if write >= 2 * mtbf:
        return mtbf
    ratio = write / (2 * mtbf)
    return math.sqrt(2 * write * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - write


def cost(work: Work, machine: Machine, activations: Activations) -> Cost:
    """The stage on the machine.

    Raises:
        UserError: there is no room for it, or devices fail too often for it ever to end.
    """
    tried = layouts(work, machine, activations)
    chosen = fastest(work, machine, tried)
    write = work.checkpoint_bytes / machine.write
    mtbf = machine.mtbf * HOUR / machine.devices or math.inf

    def saving(steps: int) -> Saving:
        interval = steps * chosen.step
        passed = expected(interval, write, mtbf, machine.restart)
        return Saving(steps * work.batch, interval, 1 - 1 / passed)

    every = min(max(1, work.save_images // work.batch), work.steps)
    best = None
    if mtbf < math.inf:
        steps = min(max(round(best_interval(write, mtbf) / chosen.step), 1), work.steps)
        if every * chosen.step + write + machine.restart > _HOPELESS * mtbf:
            raise UserError(
                f"stage {work.name!r}: one of {machine.devices} devices fails every {mtbf / HOUR:.2g} h, a checkpoint "
                f"stands for {every * chosen.step / HOUR:.2g} h of training, and a restart takes "
                f"{machine.restart / HOUR:.2g} h: it would not get on; set save_images to {steps * work.batch:,}"
            )
        best = saving(steps)
    own = saving(every)
    training = work.steps * chosen.step
    seconds = training / (1 - own.lost)
    rate, kept = work.batch / chosen.step, saves_kept(work)
    return Cost(
        work=work,
        layouts=tried,
        chosen=chosen,
        training_seconds=training,
        seconds=seconds,
        device_days=seconds * machine.devices / DAY,
        price=seconds * machine.devices / HOUR * machine.price,
        images_per_second=rate,
        bytes_per_second=rate * work.sample_bytes,
        write_seconds=write,
        kept=kept,
        kept_bytes=kept * work.checkpoint_bytes,
        saving=own,
        best=best,
    )


def total(costs: Sequence[Cost]) -> Total:
    """Of stages that are trained one after the other."""
    return Total(
        seconds=sum(cost.seconds for cost in costs),
        device_days=sum(cost.device_days for cost in costs),
        price=sum(cost.price for cost in costs),
        checkpoint_bytes=sum(cost.kept_bytes for cost in costs) + max(cost.work.checkpoint_bytes for cost in costs),
    )
