"""What a store folder's manifest says, and what can be believed of one."""

import dataclasses
import hashlib
import io
import json
import math
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from pixelspace.config import parse_json, value
from pixelspace.errors import CheckpointError, UserError

FORMAT, PIECES = 1, 2  # of a folder that one process wrote, and of one that several did
MAX_JSON = 16 << 20  # bytes of MANIFEST.json (about 100,000 tensors) and of state.json
MAX_HEADER = 16 << 20  # bytes of a safetensors header

MANIFEST, STATE, TENSORS = "MANIFEST.json", "state.json", ".safetensors"
PART, NAME = r"^[a-z0-9_-]+$", r"^[A-Za-z0-9_.]+$"
FILE = r"^[a-z0-9_-]+(\.[1-9][0-9]{0,5})?$"  # a part, or what a rank other than the first has of it
CHUNK = 1 << 20  # bytes read or written at a time: hashing then finds them in the processor's cache
THREADS = 4  # files read or written at once; hashing is what takes the time, one core a file
OTHER_COPY = "use another copy or an older one"

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a tensor that is stored in pieces: from row `first` on, of `total`."""

    tensor: Tensor
    first: int
    total: int


_Size = Annotated[int, Field(ge=0, lt=2**63)]


@value
class File:
    bytes: _Size
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@value
class Stated:
    shape: Annotated[tuple[_Size, ...], Field(max_length=64)]
    dtype: str
    crc32: _Size  # names the damaged tensor of a file whose SHA-256 is wrong
    finite: bool
    first: _Size | None = None  # of a piece: its first row, and how many the whole has
    total: _Size | None = None

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"no such dtype {self.dtype!r}")
        if math.prod(max(n, 1) for n in self.shape) * self.itemsize >= 2**63:
            raise ValueError("shape too large for any memory")
        if (self.first is None) != (self.total is None):
            raise ValueError("a piece has both its first row and the whole's")
        if self.first is not None and self.total is not None:
            if not self.shape or self.first + self.shape[0] > self.total:
                raise ValueError(f"rows {self.first} on, of {self.total}, cannot have shape {self.shape}")

    @property
    def whole(self) -> tuple[int, ...]:
        return self.shape if self.total is None else (self.total, *self.shape[1:])

    @property
    def rows(self) -> range:
        start = self.first or 0
        return range(start, start + (self.shape[0] if self.shape else 0))

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


@value
class Manifest:
    format: int
    kind: str
    library: str
    files: dict[str, File]
    tensors: dict[Annotated[str, Field(pattern=FILE)], dict[Annotated[str, Field(pattern=NAME)], Stated]]


def as_json(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False).encode() + b"\n"


def sealed(body: dict[str, Any]) -> bytes:
    """The manifest's bytes: it carries its own hash, since no other file vouches for it."""
    return as_json({**body, "sha256": hashlib.sha256(as_json(body)).hexdigest()})


def in_file_order(tensors: dict[str, Stated]) -> dict[str, Stated]:
    """Wide dtypes first, so that every tensor is aligned; then by name (as the safetensors library does)."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))


def header_of(tensors: dict[str, Stated]) -> bytes:
    """The safetensors header (https://github.com/huggingface/safetensors#format) of `tensors` in file order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    tensor = tensor.detach()
    ends = torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float())  # one pass; NaN wins both ends
    return math.isfinite(ends.min.item()) and math.isfinite(ends.max.item())


def plain(described: Any) -> dict[str, Any]:
    """As JSON data, without what has no value."""
    return {key: item for key, item in dataclasses.asdict(described).items() if item is not None}


def describe(part: str, name: str, given: Tensor | Piece) -> Stated:
    tensor = given.tensor if isinstance(given, Piece) else given
    if not re.fullmatch(NAME, name) or name == "__metadata__":
        raise UserError(f"{part}: tensor name {name!r}: expected letters, digits, '_' and '.' only")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in CODES:
        found = f"{tensor.dtype}, {tensor.layout} on {tensor.device}"
        raise UserError(f"{part}: {name}: cannot store {found}; expected a dense tensor of {', '.join(DTYPES)}")
    first, total = (given.first, given.total) if isinstance(given, Piece) else (None, None)
    shape, dtype = tuple(tensor.shape), CODES[tensor.dtype]
    return Stated(shape=shape, dtype=dtype, crc32=0, finite=_is_finite(tensor), first=first, total=total)


def parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        data = parse_json(text.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON as we write it: {error}; {OTHER_COPY}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}; {OTHER_COPY}")
    return data


def read_manifest(path: Path, file: io.BufferedReader, kind: str) -> Manifest:
    text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise CheckpointError(f"{path}: more than the {MAX_JSON} bytes that a manifest can have; {OTHER_COPY}")
    data = parsed(path, text)
    found = data.get("format")
    if type(found) is int and found > PIECES:
        raise CheckpointError(
            f"{path}: format {found}, written by pixelspace {data.get('library')!r:.20}; this is pixelspace "
            f"{version('pixelspace')}, which reads formats up to {PIECES}: install a newer one"
        )
    data.pop("sha256", None)
    if sealed(data) != text:
        raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the one that it states itself; {OTHER_COPY}")
    try:
        manifest = TypeAdapter(Manifest).validate_json(as_json(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {where:.80}: {first['msg']}, found {first['input']!r:.80}") from error
    if manifest.format not in (FORMAT, PIECES):
        raise CheckpointError(f"{path}: format {found}; this pixelspace reads formats {FORMAT} and {PIECES}")
    if manifest.kind != kind:
        raise CheckpointError(f"{path.parent}: holds a {manifest.kind!r}; expected a {kind!r}")
    names = {STATE, *(part + TENSORS for part in manifest.tensors)}
    if (odd := manifest.files.keys() ^ names) and (name := min(odd)):
        raise CheckpointError(f"{path}: files: {name!r:.80}: expected exactly {STATE} and a file a part")
    for part, tensors in manifest.tensors.items():
        header = len(header_of(in_file_order(tensors)))
        size, stated = header + sum(t.nbytes for t in tensors.values()), manifest.files[part + TENSORS].bytes
        if header > MAX_HEADER or stated != size or "__metadata__" in tensors:
            raise CheckpointError(
                f"{path}: {part}{TENSORS}: {stated} bytes stated, its tensors take {size}, {header} of it the header "
                f"(at most {MAX_HEADER}), and none can be named __metadata__; {OTHER_COPY}"
            )
    for (part, name), pieces in by_tensor(manifest).items():
        at, (_, of) = 0, pieces[0]
        for _, piece in pieces:
            if (piece.whole, piece.dtype) != (of.whole, of.dtype) or piece.rows.start != at:
                raise CheckpointError(f"{path}: {part}: {name}: its pieces do not fit at row {at}; {OTHER_COPY}")
            at = piece.rows.stop
        if (of.whole and at != of.whole[0]) or (not of.whole and len(pieces) > 1):
            raise CheckpointError(f"{path}: {part}: {name}: {at} rows of {of.whole} are there; {OTHER_COPY}")
    return manifest


def by_tensor(manifest: Manifest) -> dict[tuple[str, str], list[tuple[str, Stated]]]:
    """By part and name, the files that have pieces of a tensor, and what they have, in order of rows."""
    found: dict[tuple[str, str], list[tuple[str, Stated]]] = {}
    for file, tensors in manifest.tensors.items():
        for name, one in tensors.items():
            found.setdefault((file.partition(".")[0], name), []).append((file, one))
    return {key: sorted(pieces, key=lambda piece: piece[1].rows.start) for key, pieces in found.items()}
