"""Single files that stand whole or not at all, JSON that vouches for itself, and folders that many processes fill.

Such a folder is begun by a file that says what it will hold, so that work goes on where it was killed and is never
mixed with other work.
"""

import fcntl
import hashlib
import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelspace.config import from_data, parse_json, to_data
from pixelspace.errors import DataError, ResourceError, UserError


def drop_abandoned(path: Path) -> None:
    """Deletes what writers of `path` that were killed have left; one that lives holds a lock."""
    for draft in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError), draft.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()


def publish(path: Path, data: bytes, then: str) -> None:
    """Writes a file whole or not at all, and onto the disk. `then` tells the user what to do after a failure.

    Raises:
        ResourceError: the disk is full or refuses.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        try:
            with draft.open("xb") as file:
                with suppress(OSError):  # where a file system has no locks, nothing is swept either
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written ({len(data):,} bytes): {error.strerror}; what stands is kept: then {then}"
        ) from error


@dataclass(frozen=True, slots=True)
class Seal:
    """What kind of thing a sealed JSON file describes, the newest `format` of it, the table of its values, and what a
    user does to have it made again."""

    kind: str
    format: int
    types: dict[str, type]
    then: str

    def _wrapped(self, body: Any) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
        return {"kind": f"pixelspace {self.kind}", "format": self.format, "sha256": digest, "body": body}

    def write(self, path: Path, described: Any) -> None:
        """Publishes the value `described`."""
        publish(path, self.text(described).encode(), self.then)

    def text(self, described: Any) -> str:
        """The value `described`, as such a file has it."""
        return json.dumps(self._wrapped(to_data(described)))

    def read(self, path: Path, cls: type) -> tuple[Any, str]:
        """The value in one of these files, and its hash.

        Raises:
            DataError: unreadable, damaged, of a newer format or of something else.
        """
        try:
            return self.parse(path.read_text(encoding="utf-8"), path, cls)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as a description of {self.kind}: {error}") from error

    def parse(self, text: str, path: Path, cls: type) -> tuple[Any, str]:
        """The value in a text that stands in `path`, and its hash; raises as `read`."""
        try:
            data = parse_json(text)
            if isinstance(data, dict) and isinstance(found := data.get("format"), int) and found != self.format:
                then = "install a newer one" if found > self.format else self.then
                raise DataError(f"{path}: format {found}; this pixelspace reads format {self.format}: {then}")
            if data != self._wrapped(data["body"]):
                raise DataError(f"{path}: is damaged: its SHA-256 is not the one it states; {self.then}")
            if not isinstance(found := from_data(data["body"], self.types), cls):
                raise DataError(f"{path}: expected {cls.__name__}, found {type(found).__name__}; {self.then}")
            return found, data["sha256"]
        except DataError:
            raise
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read as a description of {self.kind}: {error}") from error

    def begin(self, folder: Path, name: str, described: Any) -> None:
        """Opens `folder` for what is `described`, in its file `name`; a folder begun before must say the same.

        Raises:
            UserError: it holds something else, or was begun with other settings.
            ResourceError: it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            there = {path.name for path in folder.iterdir() if path.suffix != ".part"}
        except OSError as error:
            raise ResourceError(f"{folder}: cannot be written: {error.strerror}; give another folder") from error
        if name not in there:
            if there:
                raise UserError(f"{folder}: holds something else ({min(there)!r}); give a new or empty folder")
            self.write(folder / name, described)
        begun, _ = self.read(folder / name, type(described))  # another rank's, it may be
        if begun != described:
            before, now = to_data(begun), to_data(described)
            changed = [
                f"{key}: {before[key]!r:.100} -> {now[key]!r:.100}" for key in now if before.get(key) != now[key]
            ]
            raise UserError(
                f"{folder}: was begun with other settings: {'; '.join(changed)}; set them back or give another folder"
            )
