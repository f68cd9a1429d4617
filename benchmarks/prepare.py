"""What finding out what is in a data set costs, once and at every start.

    python benchmarks/prepare.py [--turns 5] [--files 50000] [--work downloads]

The shards are those of loader.py, the files 16-pixel PNGs in 100 folders. Prints a Markdown table: median (fastest to
slowest) seconds by the clock with all cores, and how many images a second that is.
"""

import argparse
import os
import platform
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
from photographs import write
from PIL import Image

from pixelspace.data.dataset import Source
from pixelspace.data.folder import Folder
from pixelspace.data.shards import Shards


def tiny(folder: Path, files: int) -> Path:
    """That many small files, written if they are not there."""
    dice = np.random.default_rng(0)
    for i in range(0 if folder.exists() else files):
        path = folder / f"{i % 100:02d}" / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


def opened(source: Source, cache: Path) -> tuple[float, int]:
    """Seconds to open a data set, and how many samples it has."""
    began = time.perf_counter()
    dataset = source.open(cache)
    return time.perf_counter() - began, len(dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--work", type=Path, default=Path("downloads"), help="where packages and shards are kept")
    given = parser.parse_args()
    work = given.work.resolve()
    shards, cache = work / f"photographs-{given.images}", work / "prepare"
    write(shards, given.images, 6, work)
    sources = {
        "photographs in 6 shards": Shards(str(shards)),
        "files of 16 pixels": Folder(str(tiny(work / f"tiny-{given.files}", given.files))),
    }
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for _ in range(given.turns):
        shutil.rmtree(cache, ignore_errors=True)
        for what in ("prepare", "open again"):
            for name, source in sources.items():
                found.setdefault((name, what), []).append(opened(source, cache))
    print(f"{os.cpu_count()} CPUs {platform.machine()}, Pillow {Image.__version__}\n")
    print("| data set | | seconds | images/s |\n| --- | --- | --- | --- |")
    for (name, what), turns in found.items():
        seconds, (count, *_) = zip(*turns, strict=True)
        middle = statistics.median(seconds)
        spread = f"{middle:.2f} ({min(seconds):.2f} - {max(seconds):.2f})"
        print(f"| {count:,} {name} | {what} | {spread} | {count / middle:,.0f} |")


if __name__ == "__main__":
    main()
