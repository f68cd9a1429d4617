"""Arms of an experiment, trained on captioned emoji from several seeds: each run is a process of one thread of its own,
a finished one is not repeated, and all are judged and shown alike."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

STEPS, GUIDANCE, NOISES = 12, 1.75, 8

Runs = dict[str, list[dict]]


def encoder_in(folder: Path) -> Any:
    """MiniLM, whose embeddings of all captions lie in the folder."""
    from pixelspace.text.cache import Cached
    from pixelspace.text.minilm import MiniLM

    return Cached(MiniLM(length=32), str(folder / "captions"))


def embed(folder: Path, groups: tuple[str, ...]) -> None:
    """Reads all captions once, for all runs."""
    import torch

    from pixelspace.data.emoji import Emoji
    from pixelspace.text.cache import embed_captions

    dataset = Emoji(groups).open()
    encoder = encoder_in(folder).encoder
    embed_captions(dataset.texts, len(dataset), folder / "captions", encoder, device=torch.device("cpu"))


@dataclass(frozen=True)
class Judge:
    """What a stage's networks are judged by: its samples, those to train on and those held out, and their captions."""

    stage: Any
    reader: Any
    dataset: Any
    ids: list[int]
    held: list[int]

    @classmethod
    def of(cls, folder: Path, recipe: Any, stage: Any) -> "Judge":
        import torch

        from pixelspace.data.loader import divide

        dataset = stage.data.source.open()
        ids, held = divide(dataset, stage.data, recipe.split)
        return cls(stage, encoder_in(folder).open(torch.device("cpu")), dataset, ids.tolist(), held.tolist())

    @property
    def captions(self) -> list[str]:
        """Of the samples to train on."""
        return [self.dataset.texts(i)[0] for i in self.ids]

    def loss(self, model: Any, objective: Any) -> float:
        """On all held-out images, under the same noises at every call."""
        import torch

        from pixelspace.random import Rng
        from pixelspace.training.preview import autocast, held_out_loss

        cpu = torch.device("cpu")

        def forward(x, c_noise, cond, **keep):
            with autocast(self.stage, cpu), torch.no_grad():
                return model.backbone(x, c_noise, cond, **keep)

        told = replace(self.stage, objective=objective, validate_count=len(self.held))
        each = (held_out_loss(told, forward, self.dataset, self.held, Rng(n), cpu, self.reader) for n in range(NOISES))
        return mean(found.loss for found in each)

    def distance(self, model: Any) -> tuple[float, Any]:
        """The Frechet distance of Lite0's features between two images drawn by each caption and the training images;
        and those drawn, uint8 (n, C, H, W)."""
        import torch

        from pixelspace.data.loader import read
        from pixelspace.evaluation.features import extract
        from pixelspace.evaluation.frechet import frechet_distance
        from pixelspace.evaluation.lite0 import Lite0
        from pixelspace.evaluation.stats import moments
        from pixelspace.evaluation.weights import Weights

        drawn = model.sample(2 * len(self.ids), text=self.captions, seed=0, batch=64, progress=False)
        images = drawn.permute(0, 3, 1, 2)
        lite = Lite0().open(Weights(Path(), False), torch.device("cpu"))
        known = read(self.dataset, self.ids, self.stage.size).images
        ours, theirs = (moments([extract(lite, one)["lite0.pool"].double()]) for one in (images, known))
        return frechet_distance(ours, theirs), images


def _start(folder: Path, arm: str, seed: int) -> None:
    if (folder / f"{arm}-{seed}" / "result.json").exists():
        return
    given = [sys.executable, sys.argv[0], str(folder), "--only", arm, str(seed)]
    with (folder / f"{arm}-{seed}.log").open("a") as log:
        code = subprocess.run(given, stderr=log, stdout=log, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    print(f"{arm}-{seed}: {'done' if code == 0 else f'failed, see its log ({code})'}", flush=True)


def results(folder: Path, names: Iterable[str]) -> Runs:
    """Finished runs by arm, in the order of seeds."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    return {arm: runs for arm in names if (runs := [run for run in found if run["arm"] == arm])}


@dataclass(frozen=True)
class Experiment:
    """A program that trains the arms of `names`, and shows what of them is finished.

    `train(folder, arm, seed)` does one run and leaves its result.json; `rounds(folder, seeds)` are the runs, arms with
    their seeds, each round waiting for the one before.
    """

    description: str | None
    names: Mapping[str, str]
    groups: tuple[str, ...]
    train: Callable[[Path, str, int], None]
    rounds: Callable[[Path, int], list[list[tuple[str, int]]]]
    table: Callable[[Runs], str]
    picture: Callable[[Path, Runs, Path], None]
    seeds: int
    workers: int

    def main(self) -> None:
        """What the command line asks for."""
        about = argparse.RawDescriptionHelpFormatter
        parser = argparse.ArgumentParser(description=self.description, formatter_class=about)
        parser.add_argument("folder", type=Path)
        parser.add_argument("--seeds", type=int, default=self.seeds)
        parser.add_argument("--workers", type=int, default=self.workers)
        parser.add_argument("--only", nargs=2, metavar=("ARM", "SEED"), help="one run, in this process")
        parser.add_argument(
            "--report", type=Path, metavar="PNG", help="print the table, draw the picture of what is finished"
        )
        given = parser.parse_args()
        given.folder.mkdir(parents=True, exist_ok=True)
        if given.only:
            self.train(given.folder, given.only[0], int(given.only[1]))
        elif given.report:
            found = results(given.folder, self.names)
            print(self.table(found))
            self.picture(given.folder, found, given.report)
        else:
            embed(given.folder, self.groups)
            for jobs in self.rounds(given.folder, given.seeds):
                with ThreadPoolExecutor(given.workers) as pool:
                    list(pool.map(lambda job: _start(given.folder, *job), jobs))


def cell(numbers: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {stdev(numbers):.2g}" if len(numbers) > 1 and any(numbers) else ""
    return f"{mean(numbers):.4g}{spread}" if numbers else "-"


def better_than(arm: str, found: Runs, others: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """A table of by how much each of the others is better than `arm`, for each seed."""
    lines = [f"| less than {names[arm]} of the same seed | held-out loss | FD-Lite0 |", "|---|---|---|"]
    known = {run["seed"]: run for run in found.get(arm, [])}
    for other in others:
        paired = [(known[run["seed"]], run) for run in found.get(other, []) if run["seed"] in known]
        less = [", ".join(f"{1 - run[key] / base[key]:+.1%}" for base, run in paired) for key in ("loss", "fd")]
        lines.append(f"| {names[other]} | {' | '.join(less)} |")
    return lines


def curves(axes: Any, found: Runs, names: Mapping[str, str], xlabel: str) -> None:
    """Held-out loss, a line a run and a colour an arm."""
    for number, (arm, runs) in enumerate(found.items()):
        for run in runs:
            label = names[arm] if run is runs[0] else None
            axes.plot(*zip(*run["curve"], strict=True), color=f"C{number}", linewidth=0.9, label=label)
    axes.set(xlabel=xlabel, ylabel="held-out loss (EMA)", yscale="log")
    axes.legend(ncols=2, fontsize=8)
