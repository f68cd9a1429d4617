"""Saves that are killed: run as a program of its own, so that it can fork with torch already imported.

`checkpoint_faults.py MODE FOLDER` plays one campaign and prints what it counted as JSON; a lost checkpoint is an error.
"""

import json
import mmap
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

from pixelspace.training import checkpoint

CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir", "close")


def parts(step):
    weight = torch.arange(600, dtype=torch.float32).reshape(20, 30) + step
    return {
        "model": {"weight": weight, "bias": weight[0]},
        "ema": {"weight": weight / 2},
        "optimizer": {"weight.exp_avg": weight * 3, "weight.step": torch.tensor(float(step))},
    }


def save(folder, step):
    checkpoint.save(folder, step, parts(step), {"step": step})
    checkpoint.prune(folder, keep_last=1)


def newest(folder):
    """The step that would be resumed; every bit of it is what was saved, and no published folder is damaged."""
    resumed = checkpoint.resume(folder)
    if resumed is None:
        return 0
    assert not resumed.refused, resumed.refused
    step = resumed.contents.state["step"]
    assert resumed.path.name.count(f"step-{step:08d}") == 1
    for part, tensors in parts(step).items():
        assert resumed.contents.parts[part].keys() == tensors.keys()
        assert all(torch.equal(resumed.contents.parts[part][name], tensor) for name, tensor in tensors.items())
    return step


class Fault:
    """Wraps calls of `os` and acts at the n-th of them, n = 0, 1, …"""

    def __init__(self, n, act, calls=CALLS):
        self.n, self.act, self.count = n, act, 0
        self.lock = threading.Lock()
        self.real = {name: getattr(os, name) for name in calls}

    def __enter__(self):
        for name in self.real:
            setattr(os, name, self.wrapped(name))
        return self

    def __exit__(self, *_):
        for name in self.real:
            setattr(os, name, self.real[name])

    def wrapped(self, name):
        def call(*args, **kwargs):
            with self.lock:
                here = self.count == self.n
                self.count += 1
                if here:
                    self.act(name, args, self.real)
            return self.real[name](*args, **kwargs)

        return call


def die(name, args, real):
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_half(name, args, real):
    real["write"](args[0], args[1][: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def forked(work):
    """Runs `work` in a fork; whether it was killed. Its own errors end the campaign."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def killed_save(folder, step, n, act):
    """Whether a save was killed at its n-th call; if not, it has fewer."""

    def work():
        with Fault(n, act, CALLS if act is die else ("write",)):
            save(folder, step)

    return forked(work)


def every_call(root):
    """Kills a save at every call that touches the disk: of a new step, of the same step again, and of the next save."""
    kills = twice = 0
    save(root / "start", 1)
    checkpoint.save(root / "start", 2, parts(2), {"step": 2})
    for again in (False, True):
        for act in (die, die_in_half):
            n = 0
            while True:
                folder = root / f"{again}-{act.__name__}-{n}"
                shutil.copytree(root / "start", folder)
                step = 2 if again else 3
                if not killed_save(folder, step, n, act):
                    break
                kills += 1
                assert newest(folder) in (2, step)
                if act is die and n % 3 == 0:  # and again, while the next save clears up
                    twice += killed_save(folder, 4, n // 2, act)
                    assert newest(folder) in (2, step, 4)
                save(folder, 5)
                assert newest(folder) == 5
                assert os.listdir(folder) == ["step-00000005"], os.listdir(folder)
                shutil.rmtree(folder)
                n += 1
    return {"kills": kills, "twice": twice}


def random_moments(folder, kills, seed):
    """Kills a process that does nothing but save, at random moments; the next one goes on where it resumes."""
    rand = random.Random(seed)
    shared = mmap.mmap(-1, 16)  # inside a save?, and the last step whose save returned

    def work():
        step = newest(folder)
        while True:
            step += 1
            shared[0] = 1
            save(folder, step)
            shared[0] = 0
            shared[8:16] = step.to_bytes(8, "little")
            time.sleep(0.002)

    inside = 0
    for _ in range(kills):
        shared[0] = 0
        pid = os.fork()
        if pid == 0:
            work()
        time.sleep(rand.uniform(0.005, 0.05))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), status
        inside += shared[0]
        published, found = int.from_bytes(shared[8:16], "little"), newest(folder)
        assert found in (published, published + 1)
        shared[8:16] = found.to_bytes(8, "little")
    stumps = [name for name in os.listdir(folder) if name.startswith(".")]
    save(folder, found + 1)
    assert os.listdir(folder) == [f"step-{found + 1:08d}"]
    return {"inside": inside, "saves": found, "last_stumps": len(stumps)}


if __name__ == "__main__":
    mode, where = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(every_call(where) if mode == "every_call" else random_moments(where, int(sys.argv[3]), seed=3)))
