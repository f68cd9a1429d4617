"""Where images to be judged lie: folders, archives, arrays. They come in order of name, whatever order they lie in.

Files must all be good, and all of one size unless they are cut: what is left out or resized in silence changes a
number. A file that is no more what it was when the set was opened is refused.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from pixelspace.data.decode import decode, shown
from pixelspace.data.index import Entry
from pixelspace.data.transforms import Crop, Cut, fit, to_tensor
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.arrays import open_array
from pixelspace.evaluation.image_files import SHEET, ArchiveFiles, Files, FolderFiles, shown_images
from pixelspace.evaluation.images import Images, chunk_of


@dataclass(frozen=True)
class FileImages(Images):
    """Images in files, each group of them a clip, or one an image."""

    source: str
    fingerprint: str
    shape: tuple[int, ...]
    cut: Cut | None
    groups: tuple[tuple[Entry, ...], ...] = field(repr=False)
    files: Files = field(repr=False)
    notes: tuple[str, ...] = ()
    chunk: int = 64

    def __len__(self) -> int:
        return len(self.groups)

    def name(self, index: int) -> str:
        first = self.groups[index][0].name
        return shown(str(PurePosixPath(first).parent) if len(self.shape) == 4 else first)

    def _image(self, entry: Entry) -> Tensor:
        try:
            data = self.files.load(entry.name)
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise DataError("changed since the images were opened; start again")
        except DataError as error:
            raise DataError(f"{self.source}: {shown(entry.name)}: {error}") from error
        image = to_tensor(decode(data, f"{self.source}: {entry.name}"))
        return fit(image, self.cut) if self.cut else image

    def read(self, numbers: range) -> Tensor:
        if not numbers:
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        images = [torch.stack([self._image(entry) for entry in self.groups[i]], 1) for i in numbers]  # (3, T, H, W)
        return torch.stack(images) if len(self.shape) == 4 else torch.cat(images, 1).transpose(0, 1).contiguous()


def _in_order(name: str) -> tuple:
    """`frame10` after `frame9`."""
    return tuple((int(part), part) if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)), name


def _clips(where: str, entries: Sequence[Entry]) -> tuple[tuple[Entry, ...], ...]:
    folders: dict[str, list[Entry]] = {}
    for entry in entries:
        folders.setdefault(str(PurePosixPath(entry.name).parent), []).append(entry)
    if "." in folders:
        raise DataError(f"{where}: {shown(folders['.'][0].name)}: is in no folder; expected a folder of frames a clip")
    first = next(iter(folders))
    for folder, frames in folders.items():
        if len(frames) != len(folders[first]):
            raise DataError(
                f"{where}: clips of one length are compared: {shown(first)} has {len(folders[first])} frames, "
                f"{shown(folder)} has {len(frames)}"
            )
    return tuple(tuple(sorted(frames, key=lambda entry: _in_order(entry.name))) for frames in folders.values())


def _refuse_mixed(where: str, entries: Sequence[Entry]) -> None:
    first = entries[0]
    for entry in entries:
        if (entry.width, entry.height) != (first.width, first.height):
            raise DataError(
                f"{where}: images of one size are compared: {shown(first.name)} is {first.width}x{first.height}, "
                f"{shown(entry.name)} is {entry.width}x{entry.height} (width x height); give a size and a crop to cut "
                "them to, or cut them yourself"
            )


def _is_lossy(head: bytes) -> bool:
    return head.startswith(b"\xff\xd8\xff") or (head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8 ")


def _notes(files: Files, groups: Sequence[Sequence[Entry]], cut: Cut | None) -> list[str]:
    entries = [entry for group in groups for entry in group]
    notes, of = [], f"of {len(entries):,}"
    try:
        lossy = [entry for entry in entries if _is_lossy(files.head(entry.name))]
    except DataError as error:
        raise DataError(f"{files.where}: {error}") from error
    if lossy:
        notes.append(
            f"{len(lossy):,} {of} files are JPEG or lossy WebP ({shown(lossy[0].name)}): compression alone moves a "
            "Frechet distance by points; save samples as PNG or in an array"
        )
    seen: dict[tuple[str, ...], str] = {}
    twice = []
    for group in groups:
        name, contents = group[0].name, tuple(entry.sha256 for entry in group)
        if (before := seen.setdefault(contents, name)) != name:
            twice.append((name, before))
    if twice:
        same = f"{shown(twice[0][0])} as {shown(twice[0][1])}"
        notes.append(f"{len(twice):,} of {len(groups):,} are the same as another, byte for byte ({same})")
    if cut and (small := sum(entry.height < cut.size[0] or entry.width < cut.size[1] for entry in entries)):
        notes.append(f"{small:,} {of} files are smaller than {cut.size[1]}x{cut.size[0]} and are enlarged")
    for what, n in sorted(Counter(note for entry in entries for note in entry.notes).items()):
        notes.append(f"{n:,} {of} files: {what}, not used")
    return notes


def _open_files(files: Files, cache: Path | None, cut: Cut | None, clips: bool) -> FileImages:
    entries, sheet = shown_images(files, cache)
    if cut is None:
        _refuse_mixed(files.where, entries)
    groups = _clips(files.where, entries) if clips else tuple((entry,) for entry in entries)
    height, width = cut.size if cut else (entries[0].height, entries[0].width)
    contents = [[(entry.name, entry.sha256) for entry in group] for group in groups]
    shape = (3, *((len(groups[0]),) if clips else ()), height, width)
    return FileImages(
        source=files.where,
        fingerprint=hashlib.sha256(json.dumps([contents, clips, cut]).encode()).hexdigest(),
        shape=shape,
        chunk=chunk_of(shape),
        notes=(*([f"{SHEET}, a sheet of the others, is left out"] if sheet else []), *_notes(files, groups, cut)),
        cut=cut,
        groups=groups,
        files=files,
    )


def open_images(
    path: Path,
    *,
    cache: Path | None,
    size: tuple[int, int] | None = None,
    crop: Crop | None = None,
    clips: bool = False,
) -> Images:
    """The images of a folder, a .zip or an uncompressed .tar, at any depth, or of a uint8 array (N, H, W, 3) in a .npy
    or in arr_0 of an .npz; with `clips` each folder of frames is one clip. A row of an array (N, T, H, W, 3) always is.

    With `size` (H, W) and `crop` they are cut; otherwise all must have one size. What is found out of them is kept in
    the folder `cache`.

    Raises:
        UserError: a size without a crop, or a path of another kind.
        DataError: no images, a damaged one, mixed sizes, or an array of something else.
    """
    if (size is None) != (crop is None) or crop == "random":
        raise UserError(f"size={size}, crop={crop!r}: give both, the crop 'center' or 'adm', or neither")
    if size is not None and min(size) < 1:
        raise UserError(f"size={size}: expected positive height and width")
    cut = Cut(size, crop) if size and crop else None
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_files(FolderFiles(path), cache, cut, clips)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if suffix in (".zip", ".tar"):
        return _open_files(ArchiveFiles(path), cache, cut, clips)
    if suffix not in (".npz", ".npy"):
        raise UserError(
            f"{path}: expected a folder, or a .zip, .tar, .npz or .npy file, found {suffix or 'no suffix'!r}"
        )
    images = open_array(path, cache=cache, cut=cut)
    if clips and len(images.shape) != 4:
        raise DataError(f"{images.source}: expected clips (N, T, H, W, 3), found images of shape {images.shape}")
    return images
