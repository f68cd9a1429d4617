"""Captions on their way into a batch, and what stands in the place of none."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.text.encoder import Reader
from pixelspace.training.stage import Stage
from pixelspace.types import Batch, Cond


def open_reader(stage: Stage, device: torch.device) -> Reader | None:
    """The stage's text encoder; None: its network reads no text.

    Raises:
        UserError: the encoder gives text of another width than the network reads.
    """
    if stage.text is None:
        return None
    reader, wanted = stage.text.open(device), stage.backbone.text_widths
    check_widths(reader, wanted, f"stage {stage.name!r}: ")
    return reader


def check_widths(reader: Reader, wanted: tuple[int, int] | None, where: str = "") -> None:
    """Raises UserError where an encoder is not of the widths (tokens, pooled) that a network reads."""
    if (reader.width, reader.pooled_width) != wanted:
        raise UserError(
            f"{where}the text encoder ({reader.identity}) gives tokens of width {reader.width} and pooled text of "
            f"{reader.pooled_width}, the network reads {wanted and wanted[0]} and {wanted and wanted[1]}; set "
            f"backbone.text.width and backbone.text.pooled, or take another encoder"
        )


def with_text(batch: Batch, texts: Sequence[str], reader: Reader | None) -> Batch:
    """The batch with what its captions mean, and with what "" means as their absence."""
    if reader is None:
        return batch
    both = reader([*texts, ""]).cond()
    cond = {name: rows[:-1] for name, rows in both.items()}
    null = {name: rows[-1:] for name, rows in both.items()}
    return replace(batch, cond={**batch.cond, **cond}, null={**batch.null, **null})


def nothing(reader: Reader) -> dict[str, Tensor]:
    """What "" means to an encoder, a row of each: kept with a model, so that it draws without its encoder."""
    return {name: rows.cpu().contiguous() for name, rows in reader([""]).cond().items()}


def _of_length(rows: Tensor, length: int) -> Tensor:
    filled = rows.new_zeros(len(rows), length, *rows.shape[2:])
    filled[:, : rows.shape[1]] = rows
    return filled


def paired(cond: Cond, null: Cond) -> tuple[Cond, Cond]:
    """Both with tokens filled up to the longer of the two."""
    length = max(cond["text"].shape[1], null["text"].shape[1])
    some = {"text", "text_mask"}
    both = ({key: _of_length(rows, length) if key in some else rows for key, rows in c.items()} for c in (cond, null))
    return next(both), next(both)
