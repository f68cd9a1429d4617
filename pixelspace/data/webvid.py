"""WebVid's CSV: videoid, contentUrl, duration, page_dir, name. `name` is the caption; the clip lies beside the CSV at
`<page_dir>/<videoid>.mp4`, or at `<videoid>.mp4`."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from pixelspace.data.sidecars import parse
from pixelspace.errors import DataError

TABLES = "results_*.csv"
_COLUMNS = ("videoid", "page_dir", "name")


@dataclass(frozen=True, slots=True)
class Row:
    """What a line says of a clip: where it may lie, the caption, and why neither can be used ("": they can)."""

    line: int
    files: tuple[str, str]
    text: str = ""
    reason: str = ""


def _row(line: int, row: dict[str, str]) -> Row:
    video, folder, name = (row[column].strip() for column in _COLUMNS)
    files = os.path.normpath(os.path.join(folder, f"{video}.mp4")), f"{video}.mp4"
    if not video:
        return Row(line, files, reason="no videoid")
    try:
        return Row(line, files, parse(name.encode()))
    except DataError as error:
        return Row(line, files, reason=f"its name {error}")


def find(root: Path, table: str) -> str:
    """The name of the CSV at the top of `root`: `table` if that is given, "" if there is none.

    Raises:
        DataError: there are several, or not the one that is wanted.
    """
    if table:
        if not (root / table).is_file():
            raise DataError(f"{root / table}: no such file; set table to the name of a CSV at the top of the folder")
        return table
    found = sorted(path.name for path in root.glob(TABLES))
    if len(found) > 1:
        raise DataError(f"{root}: found {' and '.join(found)}; set table to the one that is meant")
    return found[0] if found else ""


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV.

    Raises:
        DataError: what is wrong with it, by file and line.
    """
    rows, last = [], 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            if missing := [name for name in _COLUMNS if name not in columns]:
                found = ",".join(columns)[:200] or "nothing"
                raise DataError(f"{path}:1: expected the columns {','.join(missing)} too; found {found}")
            last = 1
            for row in reader:
                last = reader.line_num
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}:{last}: expected {len(columns)} fields; put quotes round names with commas"
                    )
                rows.append(_row(last, row))
    except csv.Error as error:
        raise DataError(f"{path}:{last + 1}: not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8, somewhere after line {last}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return rows
