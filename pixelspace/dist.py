"""Which device, how many threads and which of how many processes, and how these meet: the only file that asks what the
machine has.

The processes of a run are its ranks. Each gives a sign of life every second, and watches the next one; the first to
fail leaves its line where the others find it. So none waits for one that is gone, and each can say which it was.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from pixelspace.errors import PeerError, PixelspaceError, ResourceError, Stopped, UserError

PATIENCE = 600.0  # seconds without a sign of life after which a rank is given up
_BEAT = 1.0
_LOOK = 0.1  # seconds after which a rank that waits looks again, at most
_GRACE = 5.0  # seconds in which a rank whose peer has failed may notice by itself


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"the environment's {name}: expected a whole number, found {text!r}")
    return int(text)


def world() -> int:
    """How many processes share the work, as `torchrun` says (WORLD_SIZE); 1 without it."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this one is (RANK), from 0.

    Raises:
        UserError: a rank that is not below their number.
    """
    if (found := _number("RANK", 0)) >= world():
        raise UserError(f"the environment's RANK is {found}, and WORLD_SIZE {world()}: ranks go from 0 below it")
    return found


def machine_world() -> int:
    """How many of them this machine has (LOCAL_WORLD_SIZE)."""
    return max(1, _number("LOCAL_WORLD_SIZE", world()))


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on; `auto` takes CUDA, then Apple's MPS, then the CPU. Of several CUDA devices each process
    of a machine takes its own, by LOCAL_RANK.

    Raises:
        ResourceError: a device that this machine or this build of torch lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ and (count := torch.cuda.device_count()):
        name = f"cuda:{_number('LOCAL_RANK', 0) % count}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(f"device {name!r} is not usable here: {str(error).splitlines()[0]}") from error
    return device


def device_bytes(device: torch.device) -> int | None:
    """The memory of a CUDA device; None: of others it is not known."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: tensors on a CUDA device, else all that it had in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


class Ranks:
    """The processes that compute one run: which of how many this is, and how they meet. Alone, all of it is nothing."""

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None, patience: float = PATIENCE):
        self.rank, self.world, self.patience, self._store = rank, world, patience, store
        self._met = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes for all."""
        return self.rank == 0

    def meet(self, mine: Any = None) -> list[Any]:
        """Plain JSON data of every rank, by rank; waits for all as long as they live.

        Raises:
            PeerError: one has failed or died.
        """
        if self.world == 1:
            return [mine]
        before, self._met = f"met/{self._met}/{self.rank}", self._met + 1
        self._store.set(f"met/{self._met}/{self.rank}", json.dumps(mine))
        keys = [f"met/{self._met}/{rank}" for rank in range(self.world)]
        pause = 0.001
        for key in keys:
            while not self._store.check([key]):
                # Who failed by what all have told came here before: its word counts, and all find the same fault.
                if (failed := self.failed()) and not self._store.check([key]):
                    raise PeerError(f"rank {self.rank}: stopped because of {failed}")
                time.sleep(pause)
                pause = min(1.5 * pause, _LOOK)  # seldom, where many wait long for one
        self._store.delete_key(before)  # read by all, or they would not be here
        return [json.loads(self._store.get(key)) for key in keys]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 first, then all others: what it leaves on the disk they find."""
        if not self.first:
            self.meet()
        yield
        if self.first:
            self.meet()

    def part(self) -> None:
        """All are through; rank 0, who may keep what they meet by, leaves last."""
        self.meet()
        if not self.first:
            self._store.set(f"left/{self.rank}", "")
        until = time.monotonic() + _GRACE
        while self.first and time.monotonic() < until:
            if all(self._store.check([f"left/{rank}"]) for rank in range(1, self.world)):
                return
            time.sleep(0.002)

    def failed(self) -> str:
        """Who has failed, and by which line; "" if nobody is known to have."""
        return self._store.get("failed").decode() if self._store.check(["failed"]) else ""


def _is_of_peers(error: BaseException) -> bool:
    """Whether an error is of processes that talk to each other."""
    if isinstance(error, torch.distributed.DistError):
        return True
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Watch(threading.Thread):
    """Gives this rank's signs of life, looks for the next one's, and ends the process when a peer has failed."""

    def __init__(self, ranks: Ranks, store: Any):
        super().__init__(name="watch", daemon=True)
        self.rank, self.world, self.patience, self.store = ranks.rank, ranks.world, ranks.patience, store
        self.over = threading.Event()

    def fail(self, line: str) -> str:
        """Leaves a line that others find, unless there is one; the line that is there."""
        return self.store.compare_set("failed", "", line).decode()

    def run(self) -> None:
        watched, seen, since, beats = f"life/{(self.rank + 1) % self.world}", b"", time.monotonic(), 0
        failed = ""
        try:
            while not failed and not self.over.wait(_BEAT):
                beats += 1
                self.store.set(f"life/{self.rank}", str(beats))
                sign = self.store.get(watched) if self.store.check([watched]) else b""
                if sign != seen:
                    seen, since = sign, time.monotonic()
                elif sign == b"over":
                    since = time.monotonic()
                elif (silent := time.monotonic() - since) > self.patience:
                    self.fail(f"rank {(self.rank + 1) % self.world}: no sign of life for {silent:.0f} seconds")
                failed = self.store.get("failed").decode() if self.store.check(["failed"]) else ""
            if not failed:
                self.store.set(f"life/{self.rank}", "over")
        except RuntimeError as error:  # DistError is one
            failed = f"the ranks' meeting place does not answer: {_line(error)}"
        # One that waits for others inside a library cannot be told. It may still find out by itself.
        if failed and not self.over.wait(_GRACE):
            print(f"error: rank {self.rank}: stopped because of {failed}", file=sys.stderr, flush=True)
            os._exit(PeerError.exit_code)

    def culprit(self) -> str:
        """Who has failed, of whom all that this rank knows is that talking to it did."""
        signs: dict[int, set[bytes]] = {rank: set() for rank in range(self.world)}
        until = time.monotonic() + 3 * _BEAT
        while time.monotonic() < until:
            if self.store.check(["failed"]) and (line := self.store.get("failed").decode()):
                return line
            for rank, known in signs.items():
                known.add(self.store.get(f"life/{rank}") if self.store.check([f"life/{rank}"]) else b"")
            time.sleep(_BEAT / 5)
        silent = [rank for rank, known in signs.items() if len(known) == 1 and rank != self.rank]
        if not silent:
            return ""
        names = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
        return self.fail(f"{names}: died or hangs, no sign of life since")


def _meeting(device: torch.device, patience: float) -> Any:
    """The process group, and its store."""
    where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    if machine_world() == world():  # one machine: nothing of it is to be reached from elsewhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}.get(device.type)
    if backend is None:
        raise UserError(f"device {device.type!r} cannot work with others; start one process, without torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what the library makes by itself must not all land on the first
    try:
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=patience))
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE is {world()}, and {_line(error)}; start the ranks by torchrun, or set RANK, WORLD_SIZE, "
            f"MASTER_ADDR and MASTER_PORT"
        ) from error
    except (torch.distributed.DistError, RuntimeError) as error:
        reason = str(error)
        if "EADDRINUSE" in reason or "address already in use" in reason.lower():
            why = "the port is in use; take another MASTER_PORT, or --standalone, which finds a free one"
        else:
            why = f"not all ranks came within {patience:.0f} seconds: {_line(error)}; start all, or raise --patience"
        raise ResourceError(f"rank {rank()} of {world()} cannot meet the others at {where}: {why}") from error
    return torch.distributed.distributed_c10d._get_default_store()


@contextmanager
def joined(device: torch.device, patience: float = PATIENCE) -> Iterator[Ranks]:
    """The ranks of this run, met for as long as this lasts.

    A rank that dies or is silent for `patience` seconds ends all of them. An error that all have is `told` for all but
    one of them.

    Raises:
        UserError: the environment says nonsense, or this kind of device works alone.
        ResourceError: they cannot meet.
        PeerError: another rank failed.
    """
    if world() == 1:
        yield Ranks()
        return
    store = _meeting(device, patience)
    ranks = Ranks(rank(), world(), store.clone(), patience)
    watch = _Watch(ranks, store.clone())
    watch.start()
    try:
        yield ranks
        ranks.part()
        torch.distributed.destroy_process_group()
    except (Stopped, PeerError):
        raise
    except BaseException as error:
        if _is_of_peers(error) and (failed := watch.culprit()):
            raise PeerError(f"rank {ranks.rank}: stopped because of {failed}") from error
        line = _line(error)
        there = watch.fail(f"rank {ranks.rank}: {line}")
        if ranks.first:  # with it goes the place where others still look
            time.sleep(3 * _LOOK)
        if isinstance(error, PixelspaceError):
            error.told = not there.startswith(f"rank {ranks.rank}:") and there.partition(": ")[2] == line
        raise
    finally:
        watch.over.set()
        watch.join(2 * _BEAT)
