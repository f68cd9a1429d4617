"""The checkpoints of a stage: store folders `step-00001000`, found by what verifies and never by a pointer.

Resuming takes the highest step that verifies and says which ones it refused. Old steps go only after a newer one is
published, and only such as are whole: a damaged folder is left to its owner's eyes.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from pixelspace import store
from pixelspace.dist import Ranks
from pixelspace.errors import CheckpointError, ResourceError

KIND = "checkpoint"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resumed:
    """The newest good checkpoint, read whole, and one line for each higher one that was refused."""

    path: Path
    contents: store.Contents
    refused: tuple[str, ...]


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(folder: Path) -> dict[int, Path]:
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ResourceError(f"{folder}: cannot look for checkpoints: {error}; see its rights") from error
    # `.old-…` is a step whose replacement was cut short; the store finds it by the step's own name.
    names = (re.fullmatch(r"step-([0-9]{8,})|\.old-step-([0-9]{8,})-[0-9a-f]{32}", path.name) for path in paths)
    steps = {int(name[1] or name[2]) for name in names if name}
    return {step: folder / _name(step) for step in sorted(steps, reverse=True)}


def candidates(folder: Path) -> list[Path]:
    """The step folders of `folder`, highest step first, good or not."""
    return list(_steps(folder).values())


def save(
    folder: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor | store.Piece]],
    state: dict[str, Any],
    ranks: Ranks | None = None,
) -> Path:
    """Publishes the checkpoint of `step` and returns its folder; clears first what killed saves left. Of several
    `ranks`, which all call this, each gives what it holds.

    A folder of this step that stands already is replaced, or, if it is damaged, kept as `.damaged-…`.

    Raises:
        ResourceError: the disk is full or refuses; every earlier checkpoint is as it was.
        UserError: something in `parts` or `state` cannot be stored.
    """
    path, first = folder / _name(step), ranks is None or ranks.first
    if first:
        store.sweep(folder, "step-*")
    if first and path.exists():
        try:
            store.verify(path, kind=KIND)
        except CheckpointError:
            store.set_aside(path, "damaged")
    return store.publish(path, parts, state, kind=KIND, replace=True, ranks=ranks)


def _first_good(folder: Path, attempt: Callable[[Path], T]) -> tuple[Path | None, T | None, tuple[str, ...]]:
    refused = []
    for path in candidates(folder):
        try:
            return path, attempt(path), tuple(refused)
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError(
            f"{folder}: none of its {len(refused)} checkpoints is good, and training never starts anew by itself: "
            f"move them away, or bring one back; the newest: {refused[0]}"
        )
    return None, None, ()


def newest(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The highest step that verifies (None without any step folder), and why each higher one was refused.

    Raises:
        CheckpointError: there are steps, and none verifies.
        ResourceError: this process may not open one of them.
    """
    path, _, refused = _first_good(folder, lambda path: store.verify(path, kind=KIND))
    return path, refused


def images_seen(folder: Path) -> tuple[Path | None, int]:
    """The highest step that is whole, and how many images it had seen; its tensors are not read."""
    path, state, _ = _first_good(folder, lambda path: store.read_state(path, kind=KIND))
    return path, state["images"] if state else 0


def resume(folder: Path, rows: store.Rows | None = None) -> Resumed | None:
    """As `newest`, and reads it, or the `rows` that are wanted, in the same pass: None without any step folder."""
    path, contents, refused = _first_good(folder, lambda path: store.read(path, kind=KIND, rows=rows))
    return Resumed(path, contents, refused) if path and contents else None


def _is_whole(path: Path) -> bool:
    try:
        store.verify(path, kind=KIND, sizes_only=True)  # the bytes were hashed when they were published
        return not path.is_symlink()
    except CheckpointError:
        return False


def prune(
    folder: Path, *, keep_last: int = 3, keep_every: int | None = None, protect: Collection[int] = ()
) -> list[Path]:
    """Deletes old whole checkpoints and returns them; call it after a save.

    Kept are the `keep_last` highest whole ones, every multiple of `keep_every` steps, the steps in `protect` (the one
    resumed from, the best), and whatever is damaged.
    """
    whole = {step: path for step, path in _steps(folder).items() if _is_whole(path)}
    kept = {*list(whole)[: max(keep_last, 1)], *protect}
    old = [path for step, path in whole.items() if step not in kept and not (keep_every and step % keep_every == 0)]
    for path in old:
        store.remove(path)
    return old
