"""Batches in a fixed order: which sample stands at a global position, and how it is cut, depend on nothing else.

Workers hold no state: each is handed positions and looks the rest up. A sample that cannot be read is replaced by a
function of its position, and reported.
"""

import atexit
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Items

from pixelspace.config import value
from pixelspace.data.augment import conditioning, draws, matrix, warp
from pixelspace.data.buckets import Buckets, bucketed
from pixelspace.data.codec import Codec
from pixelspace.data.dataset import Dataset, Sample, Share, Source
from pixelspace.data.keep import Keep, kept, split_by_count, split_by_key
from pixelspace.data.order import Interleaved, Order, Shuffled, Windowed, compact
from pixelspace.data.transforms import Crop, Cut
from pixelspace.errors import DataError, UserError
from pixelspace.nn.frames import as_image
from pixelspace.random import Rng
from pixelspace.types import Batch

_TRIES = 16  # unreadable samples in a row at one position before that is an error of its own


@value
class Data:
    """Where images come from and how they are cut.

    `crop` adm is the centre, resized as in Dhariwal and Nichol 2021. `augment` is the rate of the non-leaky
    augmentation, which brings its own flips; without it `flip` mirrors half of the images. Only samples that pass all
    filters `keep` are trained on. `holdout` is the share kept for validation, the same at every start: by `count`
    exactly so many of what passed, by `key` those whose own name says so, whatever else is there and whatever the seed.
    `order` files is for media that are slow to jump on: samples are shuffled among `window` files at a time.
    `buckets` gives batches of one shape each; only the held-out loss keeps the stage's size.
    """

    source: Source
    crop: Crop = "center"
    flip: bool = True
    augment: float = 0.0
    keep: tuple[Keep, ...] = ()
    holdout: float = 0.0
    split: Literal["count", "key"] = "count"
    order: Literal["uniform", "files"] = "uniform"
    window: int = 64
    buckets: Buckets | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.augment <= 1:
            raise ValueError(f"augment must be in [0, 1], found {self.augment}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be in [0, 1), found {self.holdout}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, found {self.window}")
        if self.buckets and self.order == "files":
            raise ValueError("buckets have an order of their own; set order to uniform, or buckets to null")
        if not 0 <= self.workers <= 256:
            raise ValueError(f"workers must be from 0 to 256, found {self.workers}")

    def bucket_sizes(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """All sizes that batches of a stage of `size` may have beside it; none without buckets."""
        return self.buckets.sizes(size) if self.buckets else ()


def _silent(line: str) -> None:
    return


def divide(
    dataset: Dataset, data: Data, rng: Rng, say: Callable[[str], None] = _silent
) -> tuple[np.ndarray, np.ndarray]:
    """(training ids, validation ids) of a data set, both int64 and ascending; of a mixture the validation ids come by
    turns of its parts, so that any first of them hold each in its share. What filters left out is said.

    Raises:
        UserError: a filter by a number that no sample has.
        DataError: a filter left nothing.
    """
    shares, train, held, turns = dataset.parts(), [], [], []
    for number, share in enumerate(shares):
        part = f"part {number}: " if len(shares) > 1 else ""
        try:
            ids, left = kept(share.dataset, share.keep + data.keep)
        except (UserError, DataError) as error:
            raise type(error)(f"{part}{error}") from error
        for line in left:
            say(f"{part}{line}")
        if data.split == "key" and data.holdout:
            mine, others = split_by_key(ids, data.holdout, share.dataset.keys()[ids])
        else:
            mine, others = split_by_count(ids, data.holdout, rng)
        train.append(mine + share.start)
        held.append(others + share.start)
        turns.append((np.arange(len(others)) + 0.5) / float(share.weight))
    return np.concatenate(train), np.concatenate(held)[np.argsort(np.concatenate(turns), kind="stable")]


def ordered(
    dataset: Dataset,
    data: Data,
    ids: np.ndarray,
    rng: Rng,
    size: tuple[int, int],
    batch: int,
    say: Callable[[str], None] = _silent,
) -> Order:
    """In which order the samples `ids`, ascending, are trained on in batches of a stage of `size`.

    Raises:
        UserError: buckets for images of which no size is known.
        DataError: buckets for images of which some sizes are not known, or fewer images than a batch.
    """

    def alone(share: Share, rng: Rng) -> Order:
        start = share.start
        mine = ids[slice(*np.searchsorted(ids, (start, start + len(share.dataset))))]
        if data.buckets:
            return bucketed(share.dataset, start, mine, data.bucket_sizes(size), batch, rng, say)
        if data.order == "files":
            return Windowed.of(mine, share.dataset.files() + start, data.window, rng)
        return Shuffled(compact(mine), rng)

    shares = dataset.parts()
    if len(shares) == 1:
        return alone(shares[0], rng)
    parts = tuple(alone(share, Rng(rng.key("part", number))) for number, share in enumerate(shares))
    return Interleaved(parts, tuple(share.weight for share in shares), rng, batch if data.buckets else 1)


@dataclass(frozen=True, slots=True)
class Raw:
    """A batch as read: uint8 images (B, 3, H, W), clips (B, 3, T, H, W) or a stored form, labels (B,), a caption each
    ("": none), sizes before cutting (B, 2) and the corners that were cut at (B, 2), positions (B,), dataset ids (B,),
    and what was bad as (name, reason)."""

    images: Tensor
    labels: Tensor
    texts: tuple[str, ...]
    sizes: Tensor
    corners: Tensor
    pos: Tensor
    ids: Tensor
    bad: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.pos)

    def part(self, start: int, stop: int) -> "Raw":
        """Rows start to stop, without the report of what was bad."""
        rows = slice(start, stop)
        tensors = (self.sizes[rows], self.corners[rows], self.pos[rows], self.ids[rows])
        return Raw(self.images[rows], self.labels[rows], self.texts[rows], *tensors, [])


class _Item(NamedTuple):
    sample: Sample
    text: str
    p: int
    index: int
    bad: list[tuple[str, str]]


class Positions(Items):
    """The training set as a function of the global position."""

    def __init__(self, dataset: Dataset, order: Order, data: Data, size: tuple[int, int], rng: Rng):
        self.dataset, self.order, self.data, self.size, self.rng = dataset, order, data, size, rng

    def _text(self, texts: tuple[str, ...], p: int) -> str:
        """One of a sample's captions; another one each time it is seen."""
        if len(texts) < 2:
            return texts[0] if texts else ""
        return texts[int(self.rng.uniforms("caption", p)[0] * len(texts))]

    def __getitem__(self, p: int) -> _Item:
        bad: list[tuple[str, str]] = []
        index, size = self.order.at(p), self.order.size(p) or self.size
        u, v, mirror = self.rng.uniforms("crop", p, 3)
        flip = self.data.flip and not self.data.augment and mirror < 0.5
        (time,) = self.rng.uniforms("clip", p)
        cut = Cut(size, self.data.crop, (u, v), flip, time)
        while True:
            try:
                sample = self.dataset.cut(index, cut)
                break
            except DataError as error:
                name = self.dataset.name(index)
                bad.append((name, str(error).removeprefix(f"{name}: ")))
            if len(bad) == _TRIES:
                raise DataError(f"{_TRIES} samples in a row cannot be read; the last: {': '.join(bad[-1])}")
            index = self.order.instead(p, len(bad))
        return _Item(sample, self._text(sample.texts, p), p, index, bad)


def _collate(items: list[_Item]) -> Raw:
    def column(rows: Iterable[Any]) -> Tensor:
        return torch.tensor(list(rows), dtype=torch.int64)

    return Raw(
        images=torch.stack([item.sample.image for item in items]),
        labels=column(item.sample.label for item in items),
        texts=tuple(item.text for item in items),
        sizes=column(item.sample.size for item in items),
        corners=column(item.sample.corner for item in items),
        pos=column(item.p for item in items),
        ids=column(item.index for item in items),
        bad=[entry for item in items for entry in item.bad],
    )


def _leave() -> None:
    if sys.exc_info()[0] is None:
        os._exit(0)


def _prepare_worker(worker: int) -> None:
    # A scheduler asks every process to stop. One that did would take the trainer down before its last checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Ended while its thread hands over a batch, an interpreter that takes itself down aborts. This comes after all
    # that multiprocessing itself cleans up.
    Finalize(None, _leave, exitpriority=-1000)
    torch.set_num_threads(1)


class _Consecutive:
    def __init__(self, start: int, batch: int, rows: range):
        self.start, self.batch, self.rows = start, batch, rows

    def __iter__(self) -> Iterator[range]:
        p = self.start
        while True:
            yield range(p + self.rows.start, p + self.rows.stop)
            p += self.batch


def _end(stream: Any) -> None:
    """Ends the workers, which ignore the signal that Python would end them by."""
    if workers := getattr(stream, "_workers", ()):
        # One that fails while it is ended fails nothing else: the loader would raise that here.
        if stream._worker_pids_set:
            _remove_worker_pids(id(stream))
            stream._worker_pids_set = False
        stream._shutdown_workers()
    for worker in workers:
        worker.kill()  # if it hangs


def batches(
    positions: Positions, start: int, batch: int, device: torch.device, rows: range | None = None
) -> Iterator[Raw]:
    """Endless global batches from position `start` on, or of each the `rows`. Closed, or at exit, it ends its workers.

    Raises:
        DataError: too many samples in a row cannot be read.
    """
    workers = positions.data.workers
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: as was asked for
        loader = DataLoader(
            positions,
            batch_sampler=_Consecutive(start, batch, rows or range(batch)),  # type: ignore[arg-type]
            collate_fn=_collate,
            num_workers=workers,
            worker_init_fn=_prepare_worker if workers else None,
            # Not forked: this process has threads; nor from a fork server, which outlives a trainer that was killed.
            multiprocessing_context="spawn" if workers else None,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # so that the loader leaves the default generator alone
        )
        stream = iter(loader)
    end = partial(_end, stream)
    atexit.register(end)
    try:
        while True:
            try:
                raw = next(stream)
            except DataError as error:  # from a worker it comes with the traceback before it
                reason = str(error).splitlines()[-1].removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")
                raise DataError(reason) from None
            yield raw
    finally:
        end()
        atexit.unregister(end)


def to_model_space(raw: Raw, data: Data, codec: Codec, rng: Rng, device: torch.device) -> Batch:
    """The batch on `device`, augmented and encoded, with its conditions; each clip as one image.

    Raises:
        UserError: clips are to be augmented, or their frames fill no square.
    """
    if data.augment and raw.images.ndim == 5:
        raise UserError(f"data.augment={data.augment} is for images, and these are clips; set it to 0")
    images = raw.images.to(device, non_blocking=True)
    stored = codec.store(images) if images.dtype == torch.uint8 else images
    x = codec.encode(stored, rng, raw.pos)
    if x.ndim == 5:
        side = math.isqrt(frames := x.shape[2])
        if side**2 != frames:
            near = f"{side**2} or {(side + 1) ** 2}"
            raise UserError(
                f"a clip's frames must fill a square, and {frames} do not; set data.source.frames to {near}"
            )
        x = as_image(x, side)
    side = raw.sizes.amin(1).float()
    scale = torch.where(side > 0, side, torch.inf)
    at_hand = {"label": raw.labels, "size": raw.sizes, "corner": raw.corners, "scale": scale}
    cond = {name: tensor.to(device, non_blocking=True) for name, tensor in at_hand.items()}
    if data.augment:
        drawn = draws(rng, raw.pos, data.augment)
        x = warp(x, matrix(drawn, (x.shape[2], x.shape[3])))
        cond["aug"] = conditioning(drawn).to(device)
    return Batch(x, cond, raw.pos)


def read(dataset: Dataset, ids: Sequence[int], size: tuple[int, int], crop: Crop = "center") -> Raw:
    """The samples `ids`, cut at the centre and not mirrored, each with its first caption: validation and comparison."""
    crop = "center" if crop == "random" else crop
    items = []
    for p, index in enumerate(ids):
        sample = dataset.cut(index, Cut(size, crop))
        items.append(_Item(sample, sample.texts[0] if sample.texts else "", p, index, []))
    return _collate(items)
