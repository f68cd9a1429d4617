"""The rows of a stage's `metrics.jsonl`, read on while it grows, and curves made of them."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelspace.serving.watch_files import number, read_bytes, whole_number

ALL = 16 << 20  # bytes at the end of the file, about 40,000 rows; what came before is not shown
LAST = 1 << 16  # bytes at its end that say how far a stage is
MAX_LINE = 1 << 16
POINTS = 500  # of a curve at most
OCTILES = 8
EVALUATION, MAX_NAMES = "evaluation/", 32


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its numbers by name, lists of them, and texts."""

    images: int
    numbers: dict[str, float | None]
    lists: dict[str, list[float | None]]
    texts: dict[str, str]


@dataclass(slots=True)
class Metrics:
    """Rows by kind and step, each step as its last attempt wrote it; of a file that is longer when it is first read,
    the last `limit` bytes.

    `images` and `attempt` are those of the last row; `unreadable` counts lines that are no row; `cut` says that the
    beginning was left out.
    """

    path: Path
    limit: int = ALL
    kinds: dict[str, dict[int, Row]] = field(default_factory=dict)
    images: int = 0
    attempt: int = 0
    unreadable: int = 0
    cut: bool = False
    _end: int = 0
    _inode: int | None = None

    def refresh(self) -> bool:
        """Reads what has been written since the last time; whether there was anything."""
        before = self._end, self._inode
        self._read_on()
        return before != (self._end, self._inode)

    def _read_on(self) -> None:
        found = read_bytes(self.path, self.limit, self._end, self._inode)
        if found is None or found.inode != self._inode or found.start != self._end:
            self.kinds, self.images, self.attempt, self.unreadable, self.cut = {}, 0, 0, 0, False
            self._end, self._inode = 0, None
        if found is None:
            return
        whole = found.data.rfind(b"\n") + 1  # a row that is being written comes next time
        lines = found.data[:whole].splitlines()
        if found.start > self._end:
            lines, self.cut = lines[1:], True
        self._end, self._inode = found.start + whole, found.inode
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        row = _row(line)
        kind, step, images = (row.get(key) for key in ("kind", "step", "images"))
        step, images = whole_number(step), whole_number(images)
        if not isinstance(kind, str) or step is None or images is None:
            self.unreadable += bool(line.strip())
            return
        self.images, self.attempt = images, whole_number(row.get("attempt")) or 0
        others = {key: item for key, item in row.items() if key not in ("kind", "step", "images", "attempt")}
        self.kinds.setdefault(kind, {})[step] = Row(
            images,
            {
                key: float(item) if isinstance(item, bool) else number(item)
                for key, item in others.items()
                if item is None or isinstance(item, int | float)
            },
            {key: [number(one) for one in item] for key, item in others.items() if isinstance(item, list)},
            {key: item for key, item in others.items() if isinstance(item, str)},
        )

    def rows(self, kind: str) -> list[Row]:
        """The rows of one kind in order of step."""
        steps = self.kinds.get(kind, {})
        return [steps[step] for step in sorted(steps)]


def _row(line: bytes) -> dict[str, Any]:
    """What a line holds, nothing if it is no object."""
    try:
        found = json.loads(line) if len(line) <= MAX_LINE else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def mean(numbers: Iterable[float | None]) -> float | None:
    """The mean of those that are known, None if none is."""
    known = [one for one in numbers if one is not None]
    return statistics.fmean(known) if known else None


def _grouped(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """Rows in groups of as many, a power of two: more rows then change a curve only at its end, or when it halves."""
    size = 1
    while len(rows) > POINTS * size:
        size *= 2
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def curves(rows: Sequence[Row], names: Iterable[str]) -> dict[str, Any]:
    """Means of the numbers of these names, and of octiles, over the images seen, in `POINTS` points at most."""
    groups = _grouped(rows)
    octiles = [[row.lists["octiles"] for row in group if _has_octiles(row)] for group in groups]
    return {
        "images": [group[-1].images for group in groups],
        **{name: [mean(row.numbers.get(name) for row in group) for group in groups] for name in names},
        "octiles": [[mean(row[octile] for row in group) for group in octiles] for octile in range(OCTILES)],
    }


def _has_octiles(row: Row) -> bool:
    return len(row.lists.get("octiles", ())) == OCTILES


def evaluations(metrics: Metrics) -> list[dict[str, Any]]:
    """What each evaluator has found: its numbers, which of them says what is best, and whether less is better."""
    found = []
    for kind in sorted(kind for kind in metrics.kinds if kind.startswith(EVALUATION)):
        rows = metrics.rows(kind)[-POINTS:]
        names = list(dict.fromkeys(name for row in rows for name in row.numbers if name != "lower"))[:MAX_NAMES]
        points = {name: [[row.images, row.numbers[name]] for row in rows if name in row.numbers] for name in names}
        best = {"best": rows[-1].texts.get("best", ""), "lower": bool(rows[-1].numbers.get("lower"))}
        found.append({"name": kind.removeprefix(EVALUATION), **best, "numbers": points})
    return found
