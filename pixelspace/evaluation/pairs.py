"""Two sets of images with the same names, and captions for them."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from pixelspace.config import parse_json
from pixelspace.data.decode import MAX_BYTES, SUFFIXES, decode, read, shown
from pixelspace.errors import DataError

_SHEET = "grid.png"  # `pixelspace sample` writes it beside the images that it shows
_SHOWN = 10  # names in a message


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_BYTES:
        raise DataError(f"over {MAX_BYTES >> 20} MiB")
    try:
        return archive.read(info)
    # What zipfile raises on damaged, encrypted and oddly compressed members, in this order.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"cannot be read: {error}") from error


def _by_stem(root: Path, found: Iterable[tuple[str, Callable[[], bytes]]]) -> dict[str, Callable[[], Image.Image]]:
    images, suffixes = {}, {}
    for name, data in found:
        path = PurePosixPath(name)
        if path.suffix.lower() not in SUFFIXES or name == _SHEET or any(part.startswith(".") for part in path.parts):
            continue
        stem = str(path.with_suffix(""))
        if stem in images:
            raise DataError(f"{root}: {shown(stem)} is there as {suffixes[stem]} and as {path.suffix}; keep one")
        images[stem], suffixes[stem] = partial(_decoded, f"{root}/{name}", data), path.suffix
    return images


def _decoded(name: str, data: Callable[[], bytes]) -> Image.Image:
    try:
        found = data()
    except DataError as error:
        raise DataError(f"{shown(name)}: {error}") from error
    return decode(found, name)


def _walked(root: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, _, names in os.walk(root, onerror=refuse):
        for name in names:
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), partial(read, path)


@contextmanager
def opened(root: Path) -> Iterator[dict[str, Callable[[], Image.Image]]]:
    """The images of a folder, at any depth, or of a ZIP archive, by relative name without the suffix; a call reads one.

    Hidden files, files without an image's suffix and the sheet `grid.png` are left out.

    Raises:
        DataError: neither folder nor archive, or two images of one name; a call: an image that cannot be read.
    """
    if root.is_dir():
        yield _by_stem(root, _walked(root))
    elif root.is_file():
        try:
            archive = zipfile.ZipFile(root)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{root}: neither a folder nor a ZIP archive: {error}") from error
        with archive:
            yield _by_stem(root, ((info.filename, partial(_member, archive, info)) for info in archive.infolist()))
    else:
        raise DataError(f"{root}: absent; give a folder or a ZIP archive of images")


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, names[:_SHOWN])) + more


def paired(left: Path, lefts: Iterable[str], right: Path, rights: Iterable[str]) -> list[str]:
    """The names that both sets have, sorted.

    Raises:
        DataError: a name that one of them lacks, or no names.
    """
    lefts, rights = set(lefts), set(rights)
    alone = [
        f"{len(names):,} only in {root} ({_listed(names)})"
        for root, names in ((left, lefts - rights), (right, rights - lefts))
        if names
    ]
    if alone:
        raise DataError(f"images without a partner of the same name: {'; '.join(alone)}; take them out or add theirs")
    if not lefts:
        raise DataError(f"{left} and {right}: no images; expected files ending in {', '.join(SUFFIXES)}")
    return sorted(lefts)


def _lines(path: Path, names: list[str]) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    if len(lines) != len(names):
        raise DataError(
            f"{path}: {len(lines):,} lines for {len(names):,} pairs; expected one a pair, in order of names"
        )
    return dict(zip(names, lines, strict=True))


def captions_of(prompts: Mapping[str, str] | Path | None, names: list[str]) -> list[str]:
    """A caption for each of `names`, "" without `prompts`; those of other images are not wanted and left alone.

    Raises:
        DataError: one that is missing, stands twice or is no text, or a file that cannot be read.
    """
    if prompts is None:
        return [""] * len(names)
    where, table = "prompts", prompts
    if isinstance(prompts, Path):
        where = str(prompts)
        try:
            table = _lines(prompts, names) if prompts.suffix == ".txt" else parse_json(prompts.read_text("utf-8-sig"))
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {error.strerror}") from error
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: expected lines (.txt) or a JSON object of captions by name: {error}") from error
    if not isinstance(table, Mapping):
        raise DataError(f"{where}: expected an object of captions by name, found {type(table).__name__}")
    captions: dict[str, str] = {}
    for name, caption in table.items():
        stem = str(PurePosixPath(name).with_suffix("")) if name.lower().endswith(SUFFIXES) else name
        if not isinstance(caption, str):
            raise DataError(f"{where}: {shown(name)}: expected text, found {caption!r:.80}")
        if captions.setdefault(stem, caption) != caption:
            raise DataError(f"{where}: two captions for {shown(stem)}; keep one")
    if missing := [name for name in names if name not in captions]:
        raise DataError(f"{where}: no caption for {len(missing):,} of {len(names):,} pairs: {_listed(missing)}")
    return [captions[name] for name in names]
