"""Captions on their way into a batch, and what stands in the place of none."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pixelspace.data.dataset import Dataset
from pixelspace.errors import DataError, UserError
from pixelspace.text.encoder import Reader
from pixelspace.text.remembered import Remembered
from pixelspace.training.stage import Stage
from pixelspace.types import BackboneConfig, Batch, Cond

_REMEMBERED = 1 << 28  # numbers of all captions of a data set: a gigabyte


def check_widths(reader: Reader, backbone: BackboneConfig) -> None:
    """Raises UserError where an encoder gives text of other widths than the network reads."""
    width, pooled = wanted = backbone.text_widths or (0, 0)
    if reader.width != width or (pooled and reader.pooled_width != pooled):
        raise UserError(
            f"text: the encoder ({reader.identity}) gives tokens of width {reader.width} and pooled text of "
            f"{reader.pooled_width}; the network reads {wanted[0]} and {wanted[1]}: set backbone.text.width and "
            f"backbone.text.pooled, or take another encoder"
        )


def open_reader(
    stage: Stage, dataset: Dataset, train_ids: np.ndarray, held_ids: np.ndarray, device: torch.device
) -> Reader | None:
    """The stage's text encoder, which keeps in mind what it reads of a small training set; None: its network reads no
    text.

    Raises:
        UserError: the encoder's widths are not the network's.
        DataError: samples to train on, or held out, have no caption.
    """
    if stage.text is None:
        return None
    reader, counts = stage.text.open(device), dataset.column("captions")
    check_widths(reader, stage.backbone)
    for what, ids in (("training", train_ids), ("validation", held_ids)):
        if len(bare := ids[counts[ids] == 0]):
            way = "give them one" if len(bare) == len(ids) else 'leave them out by data.keep: Keep("captions", low=1)'
            raise DataError(
                f"stage {stage.name!r}: {len(bare):,} of {len(ids):,} {what} samples have no caption, the first is "
                f"{dataset.name(int(bare[0]))}; {way}"
            )
    # Of captions that cannot be read the number is NaN: they are left to where a sample is replaced by another.
    if counts[train_ids].sum() * stage.text.length * reader.width <= _REMEMBERED:
        return Remembered(reader, (text for index in train_ids.tolist() for text in dataset.texts(index)))
    return reader


def with_text(batch: Batch, texts: Sequence[str], reader: Reader | None) -> Batch:
    """The batch with what its captions mean, and with what "" means in place of those that are dropped."""
    if reader is None:
        return batch
    both = reader([*texts, ""]).cond()
    cond = {name: rows[:-1] for name, rows in both.items()}
    null = {name: rows[-1:] for name, rows in both.items()}
    return replace(batch, cond={**batch.cond, **cond}, null={**batch.null, **null})


def nothing(reader: Reader | None) -> dict[str, Tensor]:
    """What "" means to an encoder, (1, ...): kept with a model, so that it can draw without its encoder."""
    return {} if reader is None else {name: rows.cpu().contiguous() for name, rows in reader([""]).cond().items()}


def _filled(rows: Tensor, length: int) -> Tensor:
    filled = rows.new_zeros(len(rows), length, *rows.shape[2:])
    filled[:, : rows.shape[1]] = rows
    return filled


def asked(labels: Tensor, size: tuple[int, int], text: Cond, null_text: Cond) -> tuple[Cond, Cond]:
    """What n images of `size` are drawn by, and by what for guidance: labels (n,) or (n, classes), and rows (n or 1,
    ...) of text, {} for none."""
    n, device = len(labels), labels.device
    none = torch.zeros_like(labels) if labels.is_floating_point() else torch.full_like(labels, -1)
    same = {"size": torch.tensor([size], device=device).expand(n, 2)}
    same["corner"] = torch.zeros_like(same["size"])
    both = []
    for label, given in ((labels, text), (none, null_text)):
        longest = max([rows["text"].shape[1] for rows in (text, null_text) if rows], default=0)
        rows = {name: _filled(row, longest) if name != "pooled" else row for name, row in given.items()}
        words = {name: row.to(device).expand(n, *row.shape[1:]) for name, row in rows.items()}
        both.append({"label": label, **same, **words})
    return both[0], both[1]
