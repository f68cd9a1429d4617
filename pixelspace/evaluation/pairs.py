"""Two sets of images with the same names, and captions for them."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from pixelspace.config import read_json
from pixelspace.data.decode import SUFFIXES, decode, shown
from pixelspace.errors import DataError
from pixelspace.evaluation.image_files import ArchiveFiles, Files, FolderFiles, shown_images
from pixelspace.evaluation.prompts import read_prompts

_SHOWN = 10  # names in a message


def _image(files: Files, name: str) -> Image.Image:
    try:
        data = files.load(name)
    except DataError as error:
        raise DataError(f"{files.where}: {shown(name)}: {error}") from error
    return decode(data, f"{files.where}/{name}")


def opened(root: Path) -> dict[str, Callable[[], Image.Image]]:
    """The images of a folder, at any depth, or of a .zip or .tar, by relative name without the suffix.

    Raises:
        DataError: neither folder nor archive, an image that cannot be read, or two of one name.
    """
    if not root.exists():
        raise DataError(f"{root}: absent; give a folder or an archive of images")
    files = FolderFiles(root) if root.is_dir() else ArchiveFiles(root)
    entries, _ = shown_images(files, None)
    images, suffixes = {}, {}
    for entry in entries:
        path = PurePosixPath(entry.name)
        stem = str(path.with_suffix(""))
        if stem in images:
            raise DataError(f"{root}: {shown(stem)} is there as {suffixes[stem]} and as {path.suffix}; keep one")
        images[stem], suffixes[stem] = partial(_image, files, entry.name), path.suffix
    return images


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


def _by_name(path: Path, names: list[str]) -> Mapping[str, str]:
    if path.suffix.lower() == ".json" and isinstance(found := read_json(path), dict):
        return found
    lines = read_prompts(path)
    if len(lines) != len(names):
        raise DataError(f"{path}: {len(lines):,} captions for {len(names):,} pairs; expected one for each, by name")
    return dict(zip(names, lines, strict=True))


def captions_of(prompts: Mapping[str, str] | Path | None, names: list[str]) -> list[str]:
    """A caption for each of `names`, "" without `prompts`; those of other images are not wanted and left alone. A file
    is a JSON object of captions by name, or one that `read_prompts` reads, in order of names.

    Raises:
        DataError: one that is missing, stands twice or is no text, or a file that cannot be read.
    """
    if prompts is None:
        return [""] * len(names)
    where = str(prompts) if isinstance(prompts, Path) else "prompts"
    table = _by_name(prompts, names) if isinstance(prompts, Path) else prompts
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
