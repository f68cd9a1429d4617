"""Latents on disk: what a codec stores of every image, computed once and checked at every read.

A folder of latents holds `latents.begun.json`, which says what is encoded and how, `shard-00000.safetensors` and so on,
each for the same range of samples, and last of all `latents.json`, which vouches for the shards. Each file appears by
one rename, so that encoding goes on where it was killed, and any number of processes may share the shards out.

A shard holds `moments` and, on request, `mirrored` (n, ...) in float32 or float16; `rows`, the JSON of each sample's
label, name and captions, one behind the other up to `ends` (n,); and `crc32` (n, 1 or 2), of a row followed by its
moments, and by its mirrored ones.
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Items
from tqdm import tqdm

from pixelspace.config import parse_json, value
from pixelspace.data.codec import Codec
from pixelspace.data.dataset import Dataset, Sample, Source
from pixelspace.data.transforms import Cut
from pixelspace.errors import DataError, NumericalError, UserError
from pixelspace.files import Seal, drop_abandoned, publish

FORMAT = 2
BEGUN, MANIFEST = "latents.begun.json", "latents.json"
_MAX_HEADER = 1 << 16  # bytes; ours take a few hundred
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "I64": torch.int64, "U8": torch.uint8}
_AGAIN = "run the same `pixelspace encode` again"


@value
class Encoding:
    """What is encoded and how: `size` of the images, `shape` of what is stored of one, the identity of the `codec`, the
    fingerprint of the `source`, how many samples in all and in a `shard`."""

    size: tuple[int, int]
    shape: tuple[int, ...]
    codec: str
    source: str
    classes: tuple[str, ...]
    count: int
    shard: int
    flip: bool
    half: bool

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.shard <= 1 << 20 or min((*self.size, *self.shape), default=0) < 1:
            raise ValueError("Encoding: count, shard (up to 2^20), size and shape must be positive")

    @property
    def shards(self) -> int:
        """How many files."""
        return math.ceil(self.count / self.shard)

    def ids(self, shard: int) -> range:
        """The samples of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.count))

    @property
    def dtype(self) -> str:
        """Of the moments, as safetensors calls it."""
        return "F16" if self.half else "F32"


@value
class Shard:
    """A shard's size in bytes, and the SHA-256 of its checksums."""

    bytes: int
    checksums: str


@value
class Manifest:
    """A whole folder of latents."""

    encoding: Encoding
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        if len(self.shards) != self.encoding.shards:
            raise ValueError(f"Manifest: {len(self.shards)} shards, expected {self.encoding.shards}")


_SEAL = Seal("latents", FORMAT, {cls.__name__: cls for cls in (Encoding, Shard, Manifest)}, _AGAIN)


def shard_path(root: Path, shard: int) -> Path:
    """Where a shard lies."""
    return root / f"shard-{shard:05d}.safetensors"


def is_latents(folder: Path) -> bool:
    """Whether latents are, or are being, written into `folder`."""
    return any((folder / name).is_file() for name in (MANIFEST, BEGUN))


@dataclass(frozen=True, slots=True)
class _Table:
    """Where the tensors of a shard begin in its file, where its rows end, and its checksums (n, 1 or 2)."""

    begins: dict[str, int]
    ends: list[int]
    crc32: list[list[int]]
    shard: Shard


def _read_table(path: Path, encoding: Encoding, shard: int) -> _Table:
    """Raises DataError where the file is not whole, or not laid out as this encoding's."""
    n = len(encoding.ids(shard))
    moments = (encoding.dtype, [n, *encoding.shape])
    expected = {"moments": moments, "crc32": ("I64", [n, 1 + encoding.flip]), "ends": ("I64", [n])}
    if encoding.flip:
        expected["mirrored"] = moments
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = parse_json(file.read(length).decode())
            expected["rows"] = ("U8", header["rows"]["shape"])
            begins, end = {}, 8 + length
            for name, (dtype, shape) in expected.items():
                stated, (begin, stop) = header[name], header[name]["data_offsets"]
                if (stated["dtype"], stated["shape"]) != (dtype, shape):
                    raise ValueError(f"{name} is {stated['dtype']} {stated['shape']}, expected {dtype} {shape}")
                if begin < 0 or stop - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
                    raise ValueError(f"{name} lies at {begin} to {stop}")
                begins[name], end = 8 + length + begin, end + stop - begin
            if size != end:
                raise ValueError(f"{size:,} bytes, expected {end:,}")
            tables = {}
            for name in ("crc32", "ends"):
                file.seek(begins[name])
                data = bytearray(file.read(8 * math.prod(expected[name][1])))
                tables[name] = torch.frombuffer(data, dtype=torch.int64).reshape(expected[name][1])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {_AGAIN}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path}: is damaged: {error}; delete it and {_AGAIN}") from error
    checksums = hashlib.sha256(tables["crc32"].numpy().tobytes()).hexdigest()
    return _Table(begins, tables["ends"].tolist(), tables["crc32"].tolist(), Shard(size, checksums))


def _read_at(file: int, begin: int, size: int) -> bytes:
    return os.pread(file, size, begin) if 0 <= size <= 1 << 32 and 0 <= begin < 1 << 62 else b""


@dataclass(frozen=True)
class LatentDataset(Dataset):
    """Latents as samples whose `image` is their stored form in float32."""

    holds_images: ClassVar[bool] = False
    root: Path
    manifest: Manifest = field(repr=False)
    fingerprint: str
    _tables: dict[int, _Table] = field(default_factory=dict, repr=False, compare=False)

    @property
    def encoding(self) -> Encoding:
        """What was encoded and how."""
        return self.manifest.encoding

    @property
    def classes(self) -> tuple[str, ...]:
        return self.encoding.classes

    @property
    def bytes(self) -> int:
        """What all shards take on the disk."""
        return sum(shard.bytes for shard in self.manifest.shards)

    def __reduce__(self) -> tuple:
        return LatentDataset, (self.root, self.manifest, self.fingerprint)

    def __len__(self) -> int:
        return self.encoding.count

    def _table(self, shard: int) -> _Table:
        if shard not in self._tables:
            path = shard_path(self.root, shard)
            table = _read_table(path, self.encoding, shard)
            if table.shard != self.manifest.shards[shard]:
                raise DataError(f"{path}: is damaged or of another encoding; delete it and {_AGAIN}")
            self._tables[shard] = table
        return self._tables[shard]

    def _read(self, index: int, mirrored: bool) -> tuple[str, Sample]:
        """A sample with its name."""
        shard, i = divmod(index, self.encoding.shard)
        path, table = shard_path(self.root, shard), self._table(shard)
        begin = table.ends[i - 1] if i else 0
        size = math.prod(self.encoding.shape) * _DTYPES[self.encoding.dtype].itemsize
        try:
            with path.open("rb") as file:
                row = _read_at(file.fileno(), table.begins["rows"] + begin, table.ends[i] - begin)
                data = _read_at(file.fileno(), table.begins["mirrored" if mirrored else "moments"] + i * size, size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; {_AGAIN}") from error
        if zlib.crc32(data, zlib.crc32(row)) != table.crc32[i][mirrored] or len(data) != size:
            raise DataError(f"{path}: sample {index} is damaged: not what its checksum says; delete it and {_AGAIN}")
        label, name, texts = json.loads(row)
        moments = torch.frombuffer(bytearray(data), dtype=_DTYPES[self.encoding.dtype]).reshape(self.encoding.shape)
        return name, Sample(moments.float(), label, tuple(texts), self.encoding.size)

    def name(self, index: int) -> str:
        try:
            return self._read(index, mirrored=False)[0]
        except DataError:
            return f"sample {index}"

    def __getitem__(self, index: int) -> Sample:
        return self._read(range(len(self))[index], mirrored=False)[1]

    def cut(self, index: int, cut: Cut) -> Sample:
        return self._read(index, cut.flip)[1]

    def check(self, size: tuple[int, int], flip: bool, codec: Codec) -> None:
        encoding = self.encoding
        if size != encoding.size:
            (h, w), (height, width) = encoding.size, size
            raise UserError(
                f"{self.root}: latents of {h}x{w} images, and the stage's size is {height}x{width}; "
                f"encode with --size {height}, or set stages.N.size=[{h},{w}]"
            )
        if flip and not encoding.flip:
            raise UserError(f"{self.root}: has no mirrored copies; encode with --flip, or set stages.N.data.flip=false")
        if (identity := codec.identity()) != encoding.codec:
            raise UserError(
                f"{self.root}: latents of another codec: made with {encoding.codec}; the stage's is "
                f"{identity or type(codec).__name__}; set stages.N.codec to the VAE they were made with, or encode anew"
            )


@value
class Latents(Source):
    """A folder that `pixelspace encode` wrote."""

    kind: ClassVar[str] = "a folder of latents"
    path: str

    def open(self, cache: Path | None = None) -> LatentDataset:
        root = Path(self.path)
        if not (root / MANIFEST).is_file():
            if not (root / BEGUN).is_file():
                raise DataError(f"{root}: holds no latents: {MANIFEST} is missing; `pixelspace encode` writes them")
            encoding, _ = _SEAL.read(root / BEGUN, Encoding)
            there = sum(shard_path(root, shard).exists() for shard in range(encoding.shards))
            raise DataError(f"{root}: {there} of {encoding.shards} shards are there and no {MANIFEST} yet; {_AGAIN}")
        manifest, fingerprint = _SEAL.read(root / MANIFEST, Manifest)
        for shard, stated in enumerate(manifest.shards):
            path = shard_path(root, shard)
            if not path.is_file():
                raise DataError(f"{path}: missing, {MANIFEST} lists it; bring it back or {_AGAIN}")
            if (found := path.stat().st_size) != stated.bytes:
                what = "cut short" if found < stated.bytes else "too long"
                raise DataError(f"{path}: {what}: {found:,} bytes, {MANIFEST} says {stated.bytes:,}; {_AGAIN}")
        return LatentDataset(root, manifest, fingerprint)


class _Images(Items):
    """Images cut to size, (1 or 2, 3, H, W) with the mirrored one, and their rows; or what is wrong with one."""

    def __init__(self, dataset: Dataset, encoding: Encoding):
        self.dataset, self.size, self.flip = dataset, encoding.size, encoding.flip

    def __getitem__(self, index: int) -> tuple[Tensor, str] | str:
        try:
            image, label, texts, *_ = self.dataset.cut(index, Cut(self.size, "adm"))
        except DataError as error:
            return str(error)
        copies = torch.stack([image, image.flip(2)] if self.flip else [image])
        return copies, json.dumps([label, self.dataset.name(index), texts])


def _collated(items: list[tuple[Tensor, str] | str]) -> tuple[Tensor, list[bytes]] | str:
    for item in items:
        if isinstance(item, str):
            return item
    images, rows = zip(*items, strict=True)
    return torch.stack(images), [row.encode() for row in rows]


def _shard_bytes(parts: list[Tensor], rows: list[bytes], encoding: Encoding) -> bytes:
    moments = torch.cat(parts, 1)  # (1 or 2, n, ...)
    crc32 = [[zlib.crc32(copy[i].numpy().data, zlib.crc32(row)) for copy in moments] for i, row in enumerate(rows)]
    tensors = {
        "moments": moments[0],
        "crc32": torch.tensor(crc32),
        "ends": torch.tensor([len(row) for row in rows]).cumsum(0),
        "rows": torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8),
    }
    return save({**tensors, "mirrored": moments[1]} if encoding.flip else tensors)


def _stored(
    batches: DataLoader, codec: Codec, encoding: Encoding, device: torch.device
) -> Iterator[tuple[Tensor, list[bytes]]]:
    """(1 or 2, B, ...) of what is stored, and the rows, batch by batch."""
    for batch in batches:
        if isinstance(batch, str):
            raise DataError(batch)
        images, rows = batch
        copies = [codec.store(copy.to(device)).cpu().to(_DTYPES[encoding.dtype]) for copy in images.unbind(1)]
        stored = torch.stack(copies)
        if not stored.isfinite().all():
            bad = (~stored.isfinite()).flatten(2).any(2).any(0).nonzero()[0].item()
            how = " as float16; leave out --half" if encoding.half else ""
            raise NumericalError(f"{json.loads(rows[int(bad)])[1]}: its latents are not finite{how}")
        yield stored, rows


def _whole(out: Path, encoding: Encoding, shard: int) -> Shard | None:
    try:
        return _read_table(shard_path(out, shard), encoding, shard).shard
    except DataError:
        return None


def encode_images(
    dataset: Dataset,
    out: Path,
    codec: Codec,
    *,
    size: int,
    device: torch.device,
    flip: bool = False,
    half: bool = False,
    batch: int = 16,
    shard: int = 1024,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    progress: bool = False,
) -> LatentDataset | None:
    """Writes what `codec` stores of every image, cut to `size` as ADM does, into the folder `out`, and opens it.

    `flip` adds mirrored copies, `half` keeps float16. Shards that stand whole are left as they are. Of `world`
    processes that share the work each has its `rank`; None is returned while shards of others are still missing.

    Raises:
        UserError: `out` holds something else or was begun with other settings; a number out of range; no images.
        DataError: an image cannot be read.
        NumericalError: latents that are not finite.
        ResourceError: the disk is full or refuses.
    """
    for name, number, least in (("size", size, 1), ("batch", batch, 1), ("shard", shard, 1), ("workers", workers, 0)):
        if number < least:
            raise UserError(f"{name} must be at least {least}, found {number}")
    if not dataset.holds_images:
        raise UserError(f"{type(dataset).__name__}: its samples are no images; give images to encode")
    codec.latent_size((size, size))
    blank = codec.store(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    encoding = Encoding(
        size=(size, size),
        shape=tuple(blank.shape[1:]),
        codec=codec.identity(),
        source=dataset.fingerprint,
        classes=dataset.classes,
        count=len(dataset),
        shard=shard,
        flip=flip,
        half=half,
    )
    _SEAL.begin(out, BEGUN, encoding)
    mine = range(rank, encoding.shards, world)
    to_do = [one for one in mine if not _whole(out, encoding, one)]
    ids = [range(at, min(at + batch, r.stop)) for r in map(encoding.ids, to_do) for at in range(r.start, r.stop, batch)]
    batches = DataLoader(
        _Images(dataset, encoding),
        batch_sampler=ids,  # type: ignore[arg-type]
        collate_fn=_collated,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator().manual_seed(0),  # so that the loader leaves the default generator alone
    )
    total, left = (sum(len(encoding.ids(one)) for one in some) for some in (mine, to_do))
    stream = _stored(batches, codec, encoding, device)
    with tqdm(total=total, initial=total - left, unit="img", desc="encoding", disable=not progress) as bar:
        for one in to_do:
            parts, rows = list[Tensor](), list[bytes]()
            while len(rows) < len(encoding.ids(one)):
                stored, more = next(stream)
                parts.append(stored)
                rows += more
                bar.update(len(more))
            drop_abandoned(shard_path(out, one))
            publish(shard_path(out, one), _shard_bytes(parts, rows, encoding), _AGAIN)
    shards = tuple(found for one in range(encoding.shards) if (found := _whole(out, encoding, one)))
    if len(shards) < encoding.shards:
        return None
    _SEAL.write(out / MANIFEST, Manifest(encoding, shards))
    return Latents(str(out)).open()
