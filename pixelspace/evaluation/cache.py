"""What was found out of a file once, kept as long as its path, size and time are the same."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pixelspace.config import parse_json
from pixelspace.errors import DataError

FORMAT = 1


def _sealed(body: Any) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(json.dumps(body).encode()).hexdigest(), "body": body}


def _load(place: Path, key: list[Any]) -> Any:
    try:
        stored = parse_json(place.read_text(encoding="utf-8"))
        body = stored["body"]
        return body["found"] if stored == _sealed(body) and body["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # absent or not ours: it is found out again


def _store(place: Path, body: Any) -> None:
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(_sealed(body)), encoding="utf-8")
        draft.replace(place)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        # No cache, then: the next start finds it out again.


def remembered(path: Path, what: str, cache: Path | None, find: Callable[[], Any]) -> Any:
    """`find()`, plain JSON data, or what it returned of the same file before; kept in the folder `cache`.

    Raises:
        DataError: no such file.
    """
    if cache is None:
        return find()
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    key = [FORMAT, str(path.resolve()), status.st_size, status.st_mtime_ns, what]
    name = hashlib.sha256(json.dumps([key[1], what]).encode()).hexdigest()[:32]
    place = cache / "evaluation" / f"{name}.json"
    if (known := _load(place, key)) is None:
        known = find()
        _store(place, {"key": key, "found": known})
    return known
