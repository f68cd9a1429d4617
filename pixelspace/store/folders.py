"""Store folders as wholes: beside their place while they are made or deleted, there by one rename."""

import fcntl
import fnmatch
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pixelspace.errors import ResourceError
from pixelspace.store.manifest import MANIFEST, STATE, TENSORS

ASIDE = re.compile(r"\.(tmp|old|del)-(.+)-[0-9a-f]{32}")


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """`mkdir -p`, each new name synced."""
    if not folder.is_dir():
        make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Says that the folder's maker lives; the kernel lets go when the process dies, however it dies."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # where a file system has no locks, nothing is swept either
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _is_abandoned(folder: Path) -> bool:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def aside(folder: Path, why: str) -> Path:
    return folder.with_name(f".{why}-{folder.name}-{uuid.uuid4().hex}")


def delete(folder: Path) -> None:
    """Removes a folder of ours; whatever else lies in it stays, and so does the folder then."""
    with suppress(OSError):  # what is left goes with a later sweep
        for name in os.listdir(folder):
            if name in (MANIFEST, STATE) or name.endswith(TENSORS):
                os.unlink(folder / name)
        os.rmdir(folder)


def sweep(parent: Path, names: str) -> None:
    """Deletes what saves of `names` (a pattern such as `step-*`) left in `parent` when their process was killed."""
    try:
        paths = list(parent.iterdir())
    except OSError:  # nothing there to sweep, or nothing we may: the save itself will say so
        return
    for path in paths:
        found = ASIDE.fullmatch(path.name)
        if not found or not fnmatch.fnmatchcase(found[2], names):
            continue
        why, name = found.groups()
        # `.old-NAME` is the last good copy until the new NAME stands.
        if why == "del" or (why == "old" and (parent / name).exists()) or (why == "tmp" and _is_abandoned(path)):
            delete(path)


def present(folder: Path) -> Path:
    """`folder`, or what it was before, if a save that replaced it was killed between its two renames."""
    if not folder.exists() and folder.parent.is_dir():
        for path in folder.parent.iterdir():
            if (found := ASIDE.fullmatch(path.name)) and found.groups() == ("old", folder.name):
                return path
    return folder


def set_aside(folder: Path, why: str) -> Path:
    """Renames a store folder to `.WHY-NAME-…` beside it, where nothing looks for it, and returns that.

    Raises:
        ResourceError: it cannot be renamed.
    """
    hidden = aside(folder, why)
    try:
        os.rename(folder, hidden)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be moved aside: {error}; move or delete it by hand") from error
    return hidden


def remove(folder: Path) -> None:
    """Deletes a store folder, out of sight by one rename before its first file goes.

    Raises:
        ResourceError: it cannot be renamed.
    """
    delete(set_aside(present(folder), "del"))
