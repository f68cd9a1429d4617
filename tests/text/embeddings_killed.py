"""Embeddings that are killed: run as a program of its own, so that it can fork with torch already imported.

`embeddings_killed.py FOLDER` kills one at every call that changes the disk, lets it go on, and prints how many kills
there were; a file that differs from those of an embedding left alone is an error.
"""

import sys
from functools import partial
from itertools import count
from pathlib import Path

import torch

from pixelspace.text.bytes import Bytes
from pixelspace.text.cache import embed_captions
from tests.data.latents_killed import killed


def embed(out: Path) -> None:
    captions = [(f"caption {i}", "a second one of all") for i in range(9)]
    assert embed_captions(captions.__getitem__, 9, out, Bytes(24), device=torch.device("cpu"), part=4).reader


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".part"}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    whole = Path(folder) / "whole"
    embed(whole)
    for n in count():
        out = Path(folder) / str(n)
        if not killed(n, partial(embed, out)):
            break
        for path in out.glob("[!.]*.safetensors"):
            assert path.read_bytes() == (whole / path.name).read_bytes(), f"{path}: half a part"
        embed(out)
        assert contents(out) == contents(whole), n
    print(n)


if __name__ == "__main__":
    main(*sys.argv[1:])
