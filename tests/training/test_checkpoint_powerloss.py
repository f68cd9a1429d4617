"""Power loss: what a save asked of the disk is recorded, cut after every call, and what was not synced is dropped.

The model of the disk: a file keeps what it had when it was last synced, a folder the names it had then; beyond that,
each may or may not have reached the disk, a file also in part (512-byte sectors, zeros behind them).
"""

import os
import random
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pixelspace.errors import CheckpointError
from pixelspace.training import checkpoint
from tests.training.checkpoint_faults import parts, save


@dataclass
class File:
    data: bytes = b""
    synced: bytes = b""

    def sync(self):
        self.synced = self.data

    def crashed(self, rand, place):
        cut = len(self.synced) + 512 * rand.randrange((len(self.data) - len(self.synced)) // 512 + 1)
        place.write_bytes(rand.choice([self.synced, self.data, self.data[:cut].ljust(len(self.data), b"\0")]))


@dataclass
class Folder:
    names: dict = field(default_factory=dict)
    synced: dict = field(default_factory=dict)

    def sync(self):
        self.synced = dict(self.names)

    def crashed(self, rand, place):
        place.mkdir()
        for name, node in rand.choice([self.synced, self.names]).items():
            node.crashed(rand, place / name)


def loaded(place):
    """What lies at `place`, all of it synced."""
    if place.is_file():
        return File(place.read_bytes(), place.read_bytes())
    names = {path.name: loaded(path) for path in place.iterdir()}
    return Folder(names, dict(names))


def find(root, path):
    for name in path.parts:
        root = root.names[name]
    return root


def replayed(start, log):
    root = loaded(start)
    for call, path, argument in log:
        folder = find(root, path.parent)
        if call == "mkdir":
            folder.names[path.name] = Folder()
        elif call == "create":
            folder.names[path.name] = File()
        elif call == "write":
            folder.names[path.name].data += argument
        elif call == "rename":
            find(root, argument.parent).names[argument.name] = folder.names.pop(path.name)
        elif call == "remove":
            del folder.names[path.name]
        else:
            find(root, path).sync()
    return root


class Recorder:
    """The calls of `os` that change what lies below `root`, in their order."""

    def __init__(self, monkeypatch, root):
        self.log, self.open, self.root, self.lock = [], {}, root, threading.Lock()
        for name in ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, real):
        def call(*args, **kwargs):
            with self.lock:
                result = real(*args, **kwargs)
                self.note(name, args, result)
                return result

        return call

    def note(self, name, args, result):
        if name in ("write", "fsync"):
            path, argument = self.open[args[0]], bytes(args[1][:result]) if name == "write" else None
            self.log.append((name, path, argument))
            return
        if not Path(args[0]).is_relative_to(self.root):
            return
        path = Path(args[0]).relative_to(self.root)
        if name == "open":
            self.open[result] = path
            if args[1] & os.O_CREAT:
                self.log.append(("create", path, None))
        elif name == "rename":
            self.log.append((name, path, Path(args[1]).relative_to(self.root)))
        else:
            self.log.append(("mkdir" if name == "mkdir" else "remove", path, None))


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The calls of saving step 2 where step 1 stands, deleting step 1."""
    save(tmp_path / "run", 1)
    shutil.copytree(tmp_path / "run", tmp_path / "start" / "run")
    with monkeypatch.context() as context:
        recorder = Recorder(context, tmp_path)
        save(tmp_path / "run", 2)
    return tmp_path / "start", recorder.log


def newest_of(root, rand, place):
    """The step that is resumed after the crash, 0 if there is none."""
    root.crashed(rand, place)
    try:
        resumed = checkpoint.resume(place / "run")
    except CheckpointError:
        return 0
    if resumed is None:
        return 0
    step = resumed.contents.state["step"]
    for part, tensors in parts(step).items():
        assert all(resumed.contents.parts[part][name].equal(tensor) for name, tensor in tensors.items())
    return step


def is_lost(start, log, rand, place, crashes):
    """Whether a crash after any call loses step 1, or a crash at the end loses step 2."""
    for end in range(len(log), -1, -1):
        allowed = {2} if end == len(log) else {1, 2}
        root = replayed(start, log[:end])
        for crash in range(crashes):
            if newest_of(root, rand, place / f"{end}-{crash}") not in allowed:
                return True
    return False


def test_power_loss_after_any_call_of_a_save_loses_nothing(recorded, tmp_path):
    (tmp_path / "crashes").mkdir()
    start, log = recorded
    crashes = 1 + 1000 // len(log)
    assert not is_lost(start, log, random.Random(1), tmp_path / "crashes", crashes)


def test_every_sync_of_a_save_is_needed(recorded, tmp_path):
    start, log = recorded
    syncs = [i for i, (call, _, _) in enumerate(log) if call == "fsync"]
    assert len(syncs) == 5 + 2  # files, their folder, and the one that holds it
    for i in syncs:
        (tmp_path / f"without-{i}").mkdir()
        assert is_lost(start, log[:i] + log[i + 1 :], random.Random(2), tmp_path / f"without-{i}", 40), log[i]
