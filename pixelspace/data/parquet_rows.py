"""Rows of Parquet files with an image each (extra `parquet`): all of a file looked at once, then read by number.

Images are bytes, or Hugging Face's struct of bytes and path; a caption is a string or a list of strings, a label a
whole number or a name. Of a row group only the columns that are wanted are read. Where a row lies, its `offset`, is the
number of its row group, from 1 on, times 2^32, plus its number in that.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pixelspace.config import nearest, parse_json, value
from pixelspace.data.decode import MAX_BYTES, shown
from pixelspace.data.labels import captions
from pixelspace.data.remote import File
from pixelspace.data.shard_scan import MAX_NUMBERS, Examine, Row, Scan, examined
from pixelspace.errors import DataError, ResourceError

GROUP_BITS = 32
_KEPT = 256 << 20  # bytes of row groups that a process keeps
_OPEN = 16  # files
_BATCH = 32  # rows that are held at once when a file is looked at


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ResourceError("pyarrow is not installed; pip install 'pixelspace[parquet]'") from error
    return pyarrow


@value
class Wanted:
    """The columns of images, captions and labels."""

    image: str
    text: str | None = None
    label: str | None = None


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """What pyarrow raises on damaged files comes out as DataError; its own faults are ValueError, OSError and these."""
    pa = _pyarrow()
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, NotImplementedError, MemoryError, pa.ArrowException) as error:
        raise DataError(f"{where}: cannot be read as Parquet: {shown(' '.join(str(error).split())[:200])}") from error


def _check(schema: Any, wanted: Wanted, name: str) -> None:
    """Raises DataError where a column is missing or of another kind."""
    types = _pyarrow().types

    def is_text(kind: Any) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    def is_list(kind: Any) -> bool:
        return types.is_list(kind) or types.is_large_list(kind)

    def is_image(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and is_image(kind.field("bytes").type)
        return types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind)

    kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
        wanted.image: ("images: bytes, or a struct of bytes and path", is_image)
    }
    if wanted.text is not None:
        kinds[wanted.text] = ("strings or lists of them", lambda t: is_text(t.value_type if is_list(t) else t))
    if wanted.label is not None:
        kinds[wanted.label] = ("whole numbers or names", lambda t: types.is_integer(t) or is_text(t))
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{shown(name)}: two columns have one name")
    for key, (what, fits) in kinds.items():
        if key not in schema.names:
            raise DataError(f"{shown(name)}: no column {key!r}; {nearest(key, schema.names)}")
        if not fits(schema.field(key).type):
            raise DataError(f"{shown(name)}: column {key!r} holds {schema.field(key).type}; expected {what}")


def open_rows(file: BinaryIO, path: str, wanted: Wanted) -> Any:
    """An open file as pyarrow's ParquetFile.

    Raises:
        DataError: it is no Parquet file, or has no such columns.
    """
    pa = _pyarrow()
    with _readable(shown(path)):
        opened = pa.parquet.ParquetFile(file)
        _check(opened.schema_arrow, wanted, path)
    return opened


def labels_of(file: File, wanted: Wanted) -> tuple[tuple[str, ...], set[str | int]]:
    """The names that Hugging Face's metadata gives the classes, () without, and all labels that stand in the file."""
    found = set[str | int]()
    with file.open() as raw, _readable(shown(file.path)):
        opened = open_rows(raw, file.path, wanted)
        for batch in opened.iter_batches(columns=[wanted.label], use_threads=False):
            found |= {label for label in batch.column(0).unique().to_pylist() if label is not None}
    try:
        features = parse_json((opened.schema_arrow.metadata or {})[b"huggingface"].decode())["info"]["features"]
        names = tuple(features[wanted.label]["names"])
    except (ValueError, LookupError, TypeError):
        names = ()
    return names if all(isinstance(name, str) for name in names) else (), found


def image_bytes(image: Any) -> bytes:
    """What an image's column holds, as bytes.

    Raises:
        DataError: nothing, or a path alone.
    """
    if isinstance(image, dict):
        if image["bytes"] is None and image.get("path"):
            raise DataError(f"holds the path {shown(image['path'])!r:.200} and not the image; store the bytes")
        image = image["bytes"]
    if image is None:
        raise DataError("no image")
    if len(image) > MAX_BYTES:
        raise DataError(f"over {MAX_BYTES >> 20} MiB")
    return image


def _label(label: str | int | None, classes: tuple[str, ...]) -> int:
    number = -1 if label is None else classes.index(label) if isinstance(label, str) else label
    if not -1 <= number < len(classes):
        raise DataError(f"label {number} is not from 0 to {len(classes) - 1}, nor -1 for none")
    return number


def _texts(found: Any) -> tuple[str, ...]:
    """From bytes: pyarrow does not look whether its strings are UTF-8."""
    texts = []
    for text in found if isinstance(found, list) else [found]:
        try:
            texts += [] if text is None else [text.decode()]
        except UnicodeDecodeError as error:
            raise DataError(f"caption is not UTF-8 at byte {error.start}") from error
    return captions("caption", texts)


def _rows_of(opened: Any, group: int, columns: list[str], text: str | None) -> Iterator[tuple[dict[str, Any], Any]]:
    """Of each row of a group its columns, and its captions as bytes."""
    pa = _pyarrow()
    batches = opened.iter_batches(_BATCH, row_groups=[group], columns=columns, use_threads=False)
    while True:
        with _readable(f"row group {group}"):
            if (batch := next(batches, None)) is None:
                return
            texts = [None] * len(batch)
            if text is not None:
                kind = batch.schema.field(text).type
                plain = kind if pa.types.is_string(kind) or pa.types.is_large_string(kind) else kind.value_type
                raw = pa.large_binary() if pa.types.is_large_string(plain) else pa.binary()
                if plain is not kind:
                    raw = pa.large_list(raw) if pa.types.is_large_list(kind) else pa.list_(raw)
                texts = batch.column(text).cast(raw).to_pylist()
                batch = batch.drop_columns([text])
            rows = batch.to_pylist()
        yield from zip(rows, texts, strict=True)


def _row(
    key: str, offset: int, found: dict[str, Any], text: object, wanted: Wanted, classes: tuple[str, ...], look: Examine
) -> Row:
    texts = _texts(text)
    label = -1 if wanted.label is None else _label(found.pop(wanted.label), classes)
    data = image_bytes(found.pop(wanted.image))
    width, height, mode, notes = look(offset, data)
    return Row(
        key=key,
        offset=offset,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        width=width,
        height=height,
        mode=mode,
        notes=notes,
        label=label,
        texts=texts,
        numbers={name: float(number) for name, number in found.items() if number is not None and math.isfinite(number)},
    )


def _numbers(schema: Any, wanted: Wanted) -> list[str]:
    types = _pyarrow().types
    names = [field.name for field in schema if types.is_integer(field.type) or types.is_floating(field.type)]
    return [name for name in names if name not in (wanted.text, wanted.label)]


def scan_rows(wanted: Wanted, classes: tuple[str, ...], file: File, look: Examine = examined) -> Scan:
    """What is in the file. `look` decodes an image, by the row's offset and the bytes. A row is known by its number.

    Raises:
        DataError: it is no Parquet file, or has no such columns.
    """
    scan, first = Scan(), 0
    with file.open() as raw:
        opened = open_rows(raw, file.path, wanted)
        numbers = _numbers(opened.schema_arrow, wanted)
        if len(numbers) > MAX_NUMBERS:
            scan.ignored["columns of numbers"] = len(numbers) - MAX_NUMBERS
        keys = (wanted.image, wanted.text, wanted.label, *numbers[:MAX_NUMBERS])
        columns = [key for key in keys if key is not None]
        for group in range(opened.num_row_groups):
            row, count = 0, opened.metadata.row_group(group).num_rows
            try:
                for found, texts in _rows_of(opened, group, columns, wanted.text):
                    offset, key = (group + 1 << GROUP_BITS) + row, str(first + row)
                    row += 1
                    try:
                        scan.rows.append(_row(key, offset, found, texts, wanted, classes, look))
                    except DataError as error:
                        scan.bad.append((key, str(error)))
            except DataError as error:
                scan.bad += [(str(first + i), str(error)) for i in range(row, count)]
            first += count
    return scan


@dataclass
class Groups:
    """Row groups at hand: those that were last used, as far as they fit. Not sent to other processes."""

    wanted: Wanted
    _open: OrderedDict[File, tuple[BinaryIO, Any]] = field(default_factory=OrderedDict, repr=False)
    _groups: OrderedDict[tuple[File, int], Any] = field(default_factory=OrderedDict, repr=False)

    def __reduce__(self) -> tuple:
        return Groups, (self.wanted,)

    def __del__(self) -> None:
        for raw, _ in self._open.values():
            raw.close()

    def _opened(self, file: File) -> Any:
        if file not in self._open:
            raw = file.open()
            try:
                self._open[file] = raw, open_rows(raw, file.path, self.wanted)
            except DataError:
                raw.close()
                raise
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(file)
        return self._open[file][1]

    def _images(self, file: File, group: int) -> Any:
        if (file, group) not in self._groups:
            with _readable(f"{shown(file.path)}, row group {group}"):
                opened = self._opened(file)
                if group >= opened.num_row_groups:
                    raise DataError(f"{shown(file.path)}: has no row group {group}")
                self._groups[file, group] = opened.read_row_group(
                    group, columns=[self.wanted.image], use_threads=False
                ).column(0)
            while len(self._groups) > 1 and sum(images.nbytes for images in self._groups.values()) > _KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end((file, group))
        return self._groups[file, group]

    def read(self, file: File, offset: int) -> bytes:
        """The image of the row that lies at `offset`.

        Raises:
            DataError: the file is damaged or gone, or the row holds none.
        """
        group, row = (offset >> GROUP_BITS) - 1, offset & (1 << GROUP_BITS) - 1
        images = self._images(file, group)
        if row >= len(images):
            raise DataError(f"{shown(file.path)}: row group {group} has no row {row}")
        return image_bytes(images[row].as_py())
