"""What a stage cannot make of its data, or of other data than it has begun with."""

from collections.abc import Mapping
from typing import Any

from pixelspace.data.dataset import Dataset
from pixelspace.errors import UserError
from pixelspace.text.encoder import Reader
from pixelspace.training.stage import Stage


def _check_labels(stage: Stage, dataset: Dataset) -> None:
    found, room = len(dataset.classes), stage.backbone.num_classes
    if room and not found:
        raise UserError(
            f"stage {stage.name!r}: the network has {room} classes but the data has none; set num_classes=0"
        )
    if room and found > room:
        raise UserError(f"stage {stage.name!r}: the data has {found} classes, the network room for {room}")


def _check_buckets(stage: Stage, dataset: Dataset) -> None:
    for height, width in stage.data.bucket_sizes(stage.size):
        try:
            stage.backbone.check_size(*stage.shape_of((height, width))[1:])
            dataset.check((height, width), stage.data.flip, stage.codec)
        except UserError as error:
            raise UserError(f"stage {stage.name!r}: data.buckets gives {height}x{width}: {error}") from error


def check_data(stage: Stage, dataset: Dataset) -> None:
    """Refuses data whose classes, sizes or stored form do not fit the stage.

    Raises:
        UserError, DataError: naming the stage, or the data.
    """
    _check_labels(stage, dataset)
    dataset.check(stage.size, stage.data.flip, stage.codec)
    _check_buckets(stage, dataset)


def check_as_before(stage: Stage, dataset: Dataset, reader: Reader | None, saved: Mapping[str, Any], name: str) -> None:
    """Refuses other data, or other weights of what reads them, than the checkpoint `name` was made of, as `saved` says.

    Raises:
        UserError: naming what has changed.
    """
    if saved["fingerprint"] != dataset.fingerprint:
        raise UserError(
            f"the data has changed since {name}: {saved['samples']} samples then, {len(dataset)} now; bring it back, "
            "or start anew with another --out"
        )
    if saved.get("codec", "") != stage.codec.identity():
        raise UserError(f"stage {stage.name!r}: the codec's weights have changed since {name}")
    if (found := reader.identity if reader else "") != saved.get("text", ""):
        raise UserError(
            f"stage {stage.name!r}: the text encoder has changed since {name}: {saved.get('text')} then, {found} now"
        )
