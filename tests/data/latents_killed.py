"""Encodings that are killed: run as a program of its own, so that it can fork with torch already imported.

`latents_killed.py IMAGES VAE FOLDER` kills one at every call that changes the disk, lets it go on, and prints how many
kills there were as JSON; a file that differs from those of an encoding left alone is an error.
"""

import json
import os
import signal
import sys
from functools import partial
from itertools import count
from pathlib import Path

import torch

from pixelspace.data.folder import Folder
from pixelspace.data.latents import encode_images
from pixelspace.interop.kl_vae import open_vae

CALLS = ("mkdir", "fsync", "rename", "unlink")


def die_at(n):
    """Kills this process at the n-th of `CALLS`, n = 0, 1, …"""
    calls = 0

    def wrapped(real):
        def call(*args, **kwargs):
            nonlocal calls
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def killed(n, work):
    """Whether `work`, done in a fork, had an n-th call to be killed at."""
    pid = os.fork()
    if pid == 0:
        die_at(n)
        work()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def main(images, vae, folder):
    torch.set_num_threads(1)
    dataset, codec = Folder(images).open(), open_vae(Path(vae))

    def encode(out):
        assert encode_images(dataset, out, codec, size=16, batch=3, shard=4, flip=True, device=torch.device("cpu"))

    def contents(out):
        return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".part"}

    whole = Path(folder) / "whole"
    encode(whole)
    for n in count():
        out = Path(folder) / str(n)
        if not killed(n, partial(encode, out)):
            break
        for path in out.glob("[!.]*.safetensors"):
            assert path.read_bytes() == (whole / path.name).read_bytes(), f"{path}: half a shard"
        encode(out)
        assert contents(out) == contents(whole), n
    print(json.dumps(n))


if __name__ == "__main__":
    main(*sys.argv[1:])
