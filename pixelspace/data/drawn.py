"""A folder of pictures that were drawn by one command, which any number of processes fill.

It is begun by `drawn.begun.json`, which says what is drawn, so that drawing goes on where it was killed and is not
mixed with other work. Each picture appears by one rename, its coarser levels before it. Whoever finds all of them there
at its end writes the grids and the prompts.
"""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.data.pictures import read_picture, save_picture, sheet, size_name
from pixelspace.errors import UserError
from pixelspace.files import Seal, publish

BEGUN = "drawn.begun.json"
MOST_SHOWN = 1024  # pictures in a grid; 50,000 of 256 px would take 10 GB of memory
_AGAIN = "run the same command again"
_PICTURE = re.compile(r"([0-9]{6,})(_[0-9x]+)?\.(png|webp)")


@value
class Asked:
    """What is drawn: by which model (a hash), how many, of how many frames, by which labels, prompts and settings.
    `batch` is 0 where bits do not depend on it."""

    model: str
    count: int
    frames: int
    size: tuple[int, ...]
    label: tuple[str, ...]
    text: tuple[str, ...]
    negative: tuple[str, ...]
    steps: int
    sampler: str
    guidance: float
    seed: int
    batch: int
    levels: bool
    fps: float


_SEAL = Seal("pictures", 1, {"Asked": Asked}, _AGAIN)


def is_begun(folder: Path) -> bool:
    """Whether pictures are, or are being, drawn into `folder` by one or more processes."""
    return (folder / BEGUN).is_file()


class Drawn:
    """The pictures in `folder`. What it holds of other work is refused, or with `overwrite` replaced, when the first
    picture is put there. `settings` says of a number what its file is to hold of how it was drawn.

    Raises:
        UserError: what is drawn there already is something else.
    """

    def __init__(
        self, folder: Path, asked: Asked, settings: Callable[[int], Mapping[str, Any]], *, overwrite: bool = False
    ):
        self.folder, self.asked, self.settings = folder, asked, settings
        self._overwrite, self._opened = overwrite, False
        self._look()

    def _look(self) -> bool:
        """Whether it is begun, by whichever process, and if so holds what is asked for."""
        if not self._opened and not self._overwrite and is_begun(self.folder):
            self._open()
        return self._opened

    def _open(self) -> None:
        if self._opened:
            return
        if self._overwrite and self.folder.is_dir():
            for path in self.folder.iterdir():
                if (found := _PICTURE.fullmatch(path.name)) and int(found[1]) < self.asked.count:
                    path.unlink()
            _SEAL.write(self.folder / BEGUN, self.asked)
        _SEAL.begin(self.folder, BEGUN, self.asked)
        self._opened = True

    def _name(self, number: int) -> str:
        return f"{number:06d}.{'webp' if self.asked.frames > 1 else 'png'}"

    def missing(self) -> list[int]:
        """The numbers of the pictures that are still to be drawn."""
        there = {path.name for path in self.folder.iterdir()} if self._look() else set()
        return [number for number in range(self.asked.count) if self._name(number) not in there]

    def put(self, numbers: Sequence[int], levels: Sequence[Tensor]) -> None:
        """Writes the pictures of these numbers, of all levels, the finest first."""
        self._open()
        finest, *coarser = levels
        fps = self.asked.fps
        for at, number in enumerate(numbers):
            settings = self.settings(number)
            for level in coarser:
                save_picture(level[at], self.folder / f"{number:06d}_{size_name(level)}", fps, settings)
            save_picture(finest[at], self.folder / f"{number:06d}", fps, settings)

    def _publish_sheet(self, suffix: str, name: str) -> Path:
        shown = min(self.asked.count, MOST_SHOWN)
        prompts = len(self.asked.text)
        frames = self.asked.frames if suffix.endswith(".webp") else 1
        paths = (self.folder / f"{number:06d}{suffix}" for number in range(shown))
        pictures = torch.stack([read_picture(path, frames, self.asked.fps) for path in paths])
        image, data = sheet(pictures, prompts if 1 < prompts < shown else max(1, round(shown**0.5))), io.BytesIO()
        image.save(data, format="PNG")
        publish(self.folder / name, data.getvalue(), _AGAIN)
        return self.folder / name

    def finish(self, *, shared: bool) -> Path:
        """Writes the grid, which is returned, one of each coarser level, and which picture is of which prompt. Where
        the work is `shared` the folder goes on saying what it holds, for a process that comes late.

        Raises:
            DataError: a picture is damaged.
        """
        grid = self._publish_sheet(Path(self._name(0)).suffix, "grid.png")
        coarser = self.folder.glob("000000_*") if self.asked.levels else ()
        for path in coarser:
            self._publish_sheet(path.name.removeprefix("000000"), f"grid{path.stem.removeprefix('000000')}.png")
        if prompts := self.asked.text:
            lines = (
                json.dumps({"file_name": self._name(number), "text": prompts[number % len(prompts)]})
                for number in range(self.asked.count)
            )
            publish(self.folder / "metadata.jsonl", ("\n".join(lines) + "\n").encode(), _AGAIN)
        if not shared:
            (self.folder / BEGUN).unlink(missing_ok=True)
        return grid


def require_room(folder: Path, *, overwrite: bool, shared: bool) -> None:
    """Raises UserError where nothing can be drawn: a file, or a folder that holds something else already."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give another --out")
    if overwrite and shared:
        raise UserError("--overwrite: one of several processes cannot know what others have drawn; give an empty --out")
    there = folder.is_dir() and any(path.suffix != ".part" for path in folder.iterdir())
    if there and not overwrite and not is_begun(folder):
        raise UserError(f"{folder}: is not empty; give another --out or add --overwrite")
