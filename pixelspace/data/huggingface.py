"""Data sets of the Hugging Face hub, through its library `datasets` (extra `hf-data`)."""

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pixelspace.config import nearest, value
from pixelspace.data.dataset import Dataset, Picture, Pictures, Source
from pixelspace.data.decode import examine, read
from pixelspace.data.labels import MAX_CLASSES, captions
from pixelspace.errors import DataError, ResourceError, UserError

_TEXT = re.compile(r"(large_)?string|(large_)?list<\w+: (large_)?string( not null)?>")
_NUMBER = re.compile(r"u?int\d+|float\d*|halffloat|double")  # as Arrow calls them
_ROWS = 10_000  # of a column that are read at once


@dataclass(frozen=True)
class _Table(Pictures):
    rows: Any  # a datasets.Dataset whose images are not decoded
    captions: Any  # the same with nothing but the captions; None without
    source: "HuggingFace"
    classes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"row {index}"

    def texts(self, index: int) -> tuple[str, ...]:
        if self.captions is None:
            return ()
        found = self.captions[index][self.source.text_key]
        return () if found is None else captions(self.name(index), found)

    def columns(self) -> tuple[str, ...]:
        own = super().columns()
        fields = self.rows.features.arrow_schema
        return *own, *(field.name for field in fields if _NUMBER.fullmatch(str(field.type)) and field.name not in own)

    def column(self, name: str) -> np.ndarray:
        if name in super().columns():
            return self._of_captions(name)
        if name not in self.columns():
            return super().column(name)
        table = self.rows.select_columns([name]).with_format("arrow")[:]
        return table[name].to_numpy().astype(np.float64)

    def _of_captions(self, name: str) -> np.ndarray:
        """NaN for a sample whose captions cannot be read."""
        out = np.zeros(len(self))
        key = self.source.text_key
        if key is None:
            return out
        found = chain.from_iterable(b[key].to_pylist() for b in self.captions.with_format("arrow").iter(_ROWS))
        for i, text in enumerate(found):
            try:
                texts = () if text is None else captions(self.name(i), text)
                out[i] = len(texts) if name == "captions" else max(map(len, texts), default=0)
            except DataError:
                out[i] = np.nan
        return out

    def _label(self, row: dict[str, Any]) -> int:
        label = row[self.source.label_key] if self.source.label_key else None
        if isinstance(label, str):
            label = self.classes.index(label)
        if label is not None and not -1 <= label < len(self.classes):
            raise DataError(f"label {label} is not from 0 to {len(self.classes) - 1}, nor -1 for none")
        return -1 if label is None else label

    def picture(self, index: int) -> Picture:
        row = self.rows[index]
        try:
            image = row[self.source.image_key] or {}
            data = image.get("bytes") or (read(Path(image["path"])) if image.get("path") else b"")
            pixels, label = examine(data).image, self._label(row)
        except DataError as error:
            raise DataError(f"{self.name(index)}: {error}") from error
        text = row[self.source.text_key] if self.source.text_key else None
        return Picture(pixels, label, () if text is None else captions(self.name(index), text))


def _classes(feature: Any, rows: Any, key: str) -> tuple[str, ...]:
    if names := getattr(feature, "names", None):
        return tuple(names)
    values = [value for value in rows.unique(key) if value is not None]
    if all(isinstance(value, str) for value in values):
        return tuple(sorted(values))
    if all(isinstance(value, int) and -1 <= value < MAX_CLASSES for value in values):
        return tuple(str(i) for i in range(max(values, default=-1) + 1))
    raise UserError(f"column {key!r} holds {feature}; labels are names or whole numbers from 0 on (-1 for none)")


@value
class HuggingFace(Source):
    """A data set of the Hugging Face hub or its cache, or one that `save_to_disk` wrote (extra `hf-data`).

    Labels are class labels, names or numbers; captions strings, or lists of them. Images are not looked at before they
    are wanted.
    """

    kind: ClassVar[str] = "a Hugging Face data set"
    path: str
    split: str = "train"
    image_key: str = "image"
    label_key: str | None = None
    text_key: str | None = None

    def open(self, cache: Path | None = None) -> Dataset:
        try:
            import datasets.exceptions  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ResourceError("datasets is not installed; pip install 'pixelspace[hf-data]'") from error
        rows: Any
        try:
            if (Path(self.path) / "state.json").is_file():
                rows = datasets.load_from_disk(self.path)
            elif (Path(self.path) / "dataset_dict.json").is_file():
                rows = datasets.load_from_disk(self.path)[self.split]
            else:
                rows = datasets.load_dataset(self.path, split=self.split)
        except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{self.path}, split {self.split}: {type(error).__name__}: {error}") from error
        for key in filter(None, (self.image_key, self.label_key, self.text_key)):
            if key not in rows.column_names:
                raise UserError(f"{self.path}: no column {key!r}; {nearest(key, rows.column_names)}")
        if self.text_key and not _TEXT.fullmatch(str(rows.features.arrow_schema.field(self.text_key).type)):
            raise UserError(f"{self.path}: column {self.text_key!r} holds {rows.features[self.text_key]}, not strings")
        if not len(rows):
            raise DataError(f"{self.path}, split {self.split}: has no rows")
        found = (rows._fingerprint, len(rows), self.image_key, self.label_key, self.text_key)
        try:
            images = rows.cast_column(self.image_key, datasets.Image(decode=False))
        # By the column's type datasets raises the first, pyarrow the others: its ArrowInvalid is a ValueError, its
        # ArrowNotImplementedError a NotImplementedError.
        except (TypeError, ValueError, NotImplementedError) as error:
            what = rows.features[self.image_key]
            raise UserError(f"{self.path}: column {self.image_key!r} holds {what}, not images") from error
        classes = _classes(rows.features[self.label_key], rows, self.label_key) if self.label_key else ()
        texts = images.select_columns([self.text_key]) if self.text_key else None
        return _Table(images, texts, self, classes, hashlib.sha256(json.dumps(found).encode()).hexdigest())
