"""How fast 256-pixel images come out of tar shards: ours, webdataset and datasets on the same files, in one run; and
how long the training of the demos waits for its images.

    python benchmarks/loader.py [--turns 7] [--batches 10] [--workers 0 2] [--work downloads] [--demos-only]

All decode with Pillow, resize the shorter side to 256 (bicubic), cut the centre, mirror half and stack batches of 32
uint8 tensors. Ours looks each sample up by its global position, checks its hash when a process first sees it, and keeps
to the policy of data/decode.py; webdataset reads shards drawn at random through a buffer of 1,000 samples; datasets
draws rows at random from the Arrow file that it made of the shards before. `Pillow alone` decodes and cuts what lies in
memory, in one process: the most that can be had.

The loaders take turns, each waiting until no other's workers prepare batches ahead, so that a busy moment of the
machine hits all of them. A core's images/s are by CPU time, that of workers too. Prints a Markdown table: median
(slowest to fastest) over the turns, and the median of the ratios to ours within a turn. See photographs.py for the
images.

The demos are trained by the command line for as many reports as there are turns, after a first one, of 5 steps each;
the second table has the share of each step that the loop waits for images, of the clock, as metrics.jsonl says it.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

SIDE, BATCH = 256, 32
OURS = "pixelspace"
DEMOS = ("hdit-demo", "hdit-text-demo")


def usual(image: Image.Image) -> Tensor:
    """What people write: torchvision's Resize, CenterCrop and RandomHorizontalFlip, in Pillow's words."""
    image = image.convert("RGB")
    short, long = sorted(image.size)
    size = (int(SIDE * long / short), SIDE) if image.width > image.height else (SIDE, int(SIDE * long / short))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((image.width - SIDE) / 2), round((image.height - SIDE) / 2)
    image = image.crop((left, top, left + SIDE, top + SIDE))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def alone(shards: list[Path]) -> Iterator[Tensor]:
    """The same of bytes in memory."""
    import webdataset.compat

    files = [
        sample["jpg"] for sample in webdataset.compat.WebDataset([str(path) for path in shards], shardshuffle=False)
    ]
    random.Random(0).shuffle(files)
    for start in itertools.count(0, BATCH):
        batch = (files[(start + i) % len(files)] for i in range(BATCH))
        yield torch.stack([usual(Image.open(io.BytesIO(data))) for data in batch])


def ours(shards: list[Path], workers: int, work: Path) -> Iterator[Tensor]:
    """Batches of the training loop."""
    from pixelspace.data.loader import Data, Positions, batches, divide, ordered
    from pixelspace.data.shards import Shards
    from pixelspace.random import Rng

    data, rng = Data(Shards(str(shards[0].parent)), workers=workers), Rng(0)
    dataset = data.source.open(work / "cache")
    order = ordered(dataset, data, divide(dataset, data, rng)[0], rng, (SIDE, SIDE), BATCH)
    positions = Positions(dataset, order, data, (SIDE, SIDE), rng)
    for raw in batches(positions, 0, BATCH, torch.device("cpu")):
        yield raw.images


def _webdataset_sample(sample: dict[str, Any]) -> tuple[Tensor, str]:
    return usual(sample["jpg"]), sample["txt"]


def with_webdataset(shards: list[Path], workers: int, work: Path) -> Iterator[Tensor]:
    """As webdataset has it for training without epochs."""
    import webdataset.compat

    paths = [str(path) for path in shards]
    samples: Any = webdataset.compat.WebDataset(paths, resampled=True, shardshuffle=False)
    stream = samples.shuffle(1000).decode("pil").map(_webdataset_sample).batched(BATCH)
    for images, _ in webdataset.compat.WebLoader(stream, batch_size=None, num_workers=workers):
        yield images


def _datasets_samples(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"image": [usual(image) for image in rows["jpg"]], "text": rows["txt"]}


def with_datasets(shards: list[Path], workers: int, work: Path) -> Iterator[Tensor]:
    """As the manual of datasets has it, with random access."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    files = {"train": [str(path) for path in shards]}
    rows: Any = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(work / "datasets"))
    rows = rows.select_columns(["jpg", "txt"]).with_transform(_datasets_samples)
    sampler = RandomSampler(rows, num_samples=10**7)
    for batch in DataLoader(rows, batch_size=BATCH, sampler=sampler, num_workers=workers):
        yield batch["image"]


def _cpu_seconds() -> float:
    """Of this process and of the workers it has."""
    spent, tick = time.process_time(), os.sysconf("SC_CLK_TCK")
    for child in multiprocessing.active_children():
        with open(f"/proc/{child.pid}/stat") as status:
            fields = status.read().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / tick
    return spent


def _rest() -> float:
    """CPU seconds once no worker does anything any more."""
    spent = _cpu_seconds()
    while True:
        time.sleep(0.25)
        now = _cpu_seconds()
        if now - spent < 0.02:
            return now
        spent = now


def rates(stream: Iterator[Tensor], batches: int, workers: int) -> tuple[float, float]:
    """Images a second of CPU time, and of wall time once what was prepared ahead is used up."""
    spent, ahead = _rest(), 2 * workers
    for _ in range(ahead):
        next(stream)
    began = time.perf_counter()
    for _ in range(batches):
        assert next(stream).shape == (BATCH, 3, SIDE, SIDE)
    took = time.perf_counter() - began
    return BATCH * (batches + ahead) / (_rest() - spent), BATCH * batches / took


def shown(values: Sequence[float], digits: int = 0) -> str:
    """Median and spread."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def waits(recipe: str, turns: int) -> list[float]:
    """The share of the time in which a training waits for data, of every report but the first."""
    from pixelspace.cli.given import recipe_of
    from pixelspace.training.log import read_metrics

    (stage,) = recipe_of(recipe).stages
    steps = 5
    settings = [f"stages.0.log_steps={steps}", f"stages.0.images={(turns + 1) * steps * stage.batch}"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "pixelspace", "train", recipe, "--out", str(run), "--threads", "1", "--quiet"]
        subprocess.run([*command, "--set", *settings], check=True, stdout=subprocess.DEVNULL)
        return [row["data_wait"] for row in read_metrics(run / f"00-{stage.name}", "train")[1:]]


def of_shards(given: argparse.Namespace) -> None:
    """Prints the table of the loaders."""
    from photographs import write

    torch.set_num_threads(1)
    work = given.work.resolve()
    shards = write(work / f"photographs-{given.images}", given.images, 6, work)
    streams: dict[tuple[str, int], Iterator[Tensor]] = {("Pillow alone", 0): alone(shards)}
    for workers in given.workers:
        for name, make in ((OURS, ours), ("webdataset", with_webdataset), ("datasets", with_datasets)):
            streams[name, workers] = make(shards, workers, work)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {row: [] for row in streams}
    for turn in range(given.turns + 1):
        for row, stream in streams.items():
            rate = rates(stream, given.batches, row[1])
            if turn:  # the first one opens, and starts workers
                found[row].append(rate)
    size = sum(path.stat().st_size for path in shards)
    print(
        f"{os.cpu_count()} CPUs {platform.machine()}, torch {torch.__version__}, Pillow {Image.__version__}, ", end=""
    )
    print(f"{given.images:,} images in {len(shards)} shards of {size / len(shards) / 2**20:.0f} MiB\n")
    print("| loader | workers | images/s a core | of ours | images/s |\n| --- | --- | --- | --- | --- |")
    for (name, workers), turns in found.items():
        cpu, wall = zip(*turns, strict=True)
        ratio = [a / b for a, (b, _) in zip(cpu, found[OURS, workers], strict=True)]
        print(f"| {name} | {workers} | {shown(cpu)} | {statistics.median(ratio):.2f} | {shown(wall)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batches", type=int, default=10, help="a turn's")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--work", type=Path, default=Path("downloads"), help="where packages and shards are kept")
    parser.add_argument("--demos-only", action="store_true")
    given = parser.parse_args()
    if not given.demos_only:
        of_shards(given)
    print("\n| recipe | share of a step that waits for images |\n| --- | --- |")
    for recipe in DEMOS:
        share = [100 * wait for wait in waits(recipe, given.turns)]
        print(f"| {recipe} | {shown(share, 2)} % |", flush=True)


if __name__ == "__main__":
    main()
