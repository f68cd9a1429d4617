"""Images and clips in one array: ADM's .npz of samples (arr_0, and arr_1 for labels), and plain .npy files."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixelspace.data.decode import shown
from pixelspace.data.transforms import Cut, fit
from pixelspace.errors import DataError
from pixelspace.evaluation.cache import remembered
from pixelspace.evaluation.images import Images, chunk_of
from pixelspace.evaluation.npy import NpyArray, Rows, npz_members, open_member, open_npy

IMAGES, LABELS = "arr_0", "arr_1"  # names that numpy.savez gives, and ADM's evaluator reads


def _check(array: NpyArray) -> None:
    """Raises DataError for anything but uint8 (N, H, W, 3) or (N, T, H, W, 3)."""
    found = f"{array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise DataError(
            f"{array.where}: expected uint8 from 0 to 255, found {found}; round your images to uint8 when you save them"
        )
    if len(array.shape) not in (4, 5) or array.shape[-1] != 3:
        channels_first = len(array.shape) in (4, 5) and 3 in array.shape[1:3]
        hint = "; channels come last here" if channels_first else ""
        raise DataError(f"{array.where}: expected (N, H, W, 3), or (N, T, H, W, 3) for clips, found {found}{hint}")
    if 0 in array.shape:
        raise DataError(f"{array.where}: holds no images: {found}")
    if array.fortran:
        raise DataError(f"{array.where}: lies in Fortran order; save it with numpy.ascontiguousarray")


class ArrayImages(Images):
    """The rows of a uint8 array on the disk, read as they are wanted. The fingerprint and the notes are found out at
    their first use, which reads everything once."""

    def __init__(
        self, array: NpyArray, *, cache: Path | None, cut: Cut | None = None, labels: NpyArray | None = None
    ) -> None:
        _check(array)
        self.array, self.cache, self.cut, self.labels = array, cache, cut, labels
        self.source = array.where
        self.rows = Rows(array, cache)
        *frames, height, width, channels = array.shape[1:]
        self.shape = (channels, *frames, *(cut.size if cut else (height, width)))
        self.chunk = chunk_of(self.shape)

    def __len__(self) -> int:
        return self.array.shape[0]

    def name(self, index: int) -> str:
        return f"{'clip' if len(self.shape) == 4 else 'image'} {index}"

    def read(self, numbers: range) -> Tensor:
        images = torch.from_numpy(np.moveaxis(self.rows[numbers], -1, 1))  # (n, 3, ..., H, W)
        if self.cut is None:
            return images.contiguous()
        flat = images.movedim(1, -3).reshape(-1, 3, *images.shape[-2:])
        cut = torch.stack([fit(image, self.cut) for image in flat])
        return cut.reshape(len(images), *self.shape[1:-2], 3, *self.cut.size).movedim(-3, 1).contiguous()

    @cached_property
    def _found(self) -> tuple[str, int]:
        """A hash of all pixels, and how many rows are the same as one before them."""

        def find() -> list[str | int]:
            whole, seen = hashlib.sha256(json.dumps(self.array.shape).encode()), set()
            for digest in self.array.digests():
                whole.update(digest)
                seen.add(digest)
            return [whole.hexdigest(), len(self) - len(seen)]

        digest, duplicates = remembered(self.array.path, f"rows of {self.array.member.name}", self.cache, find)
        return digest, duplicates

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self._found[0], self.cut]).encode()).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        notes = []
        if duplicates := self._found[1]:
            notes.append(f"{duplicates:,} of {len(self):,} are the same as another, byte for byte")
        if self.labels:
            labels = self.labels.load()
            if labels.shape != (len(self),):
                found = tuple(labels.shape)
                raise DataError(f"{self.labels.where}: expected a label for each of {len(self):,}, found shape {found}")
            if labels[0] != labels[-1] and bool((labels.diff() >= 0).all()):
                notes.append("they come class by class: an Inception Score of consecutive splits is far too low so")
        return tuple(notes)


def open_array(path: Path, *, cache: Path | None, cut: Cut | None = None) -> ArrayImages:
    """The images in a .npy file, or in arr_0 of an .npz.

    Raises:
        DataError: damaged, or not uint8 of shape (N, H, W, 3) or (N, T, H, W, 3).
    """
    if path.suffix.lower() == ".npy":
        return ArrayImages(open_npy(path), cache=cache, cut=cut)
    members = npz_members(path)
    if IMAGES not in members:
        hint = "; statistics are given as the reference" if {"mu", "feats"} & members.keys() else ""
        raise DataError(f"{path}: no {IMAGES} in it, found {shown(', '.join(members)) or 'nothing'}{hint}")
    labels = open_member(path, members[LABELS]) if LABELS in members else None
    return ArrayImages(open_member(path, members[IMAGES]), cache=cache, cut=cut, labels=labels)
