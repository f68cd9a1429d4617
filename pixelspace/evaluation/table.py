"""CSV files of prompts, questions and answers, read strictly."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pixelspace.errors import DataError


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, plain or gzipped, each with its place (`prompts.csv:7`); more columns may stand there.

    Raises:
        DataError: absent, not CSV, not UTF-8, without one of `columns`, or with a row of another length.
    """
    reader = None
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or ()
            if not set(columns) <= set(header):
                found = ",".join(header)[:200] or "nothing"
                raise DataError(f"{path}:1: expected the columns {','.join(columns)}; found {found}")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: expected {len(header)} fields; put quotes round texts with commas")
                yield where, row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num if reader else 1}: not CSV: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DataError(f"{path}: cannot be read: {reason}") from error
