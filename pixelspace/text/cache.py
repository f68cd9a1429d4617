"""Embeddings on disk: what a text encoder makes of each caption, computed once and checked at every read.

A folder of embeddings holds `embeddings.begun.json`, which says whose they are and of which captions,
`part-00000.safetensors` and so on, and last of all `embeddings.json`, which vouches for the parts. Each file appears by
one rename, so that embedding goes on where it was killed, and any number of processes may share the parts out.

A caption is known by the first 16 bytes of the SHA-256 of its UTF-8, as it stands: nothing is normalised. Captions are
in the order of these keys, each once, over all parts. A part holds of its n captions `keys` (n, 16); `tokens`
(sum of their tokens, D) in bfloat16, one caption behind the other up to `ends` (n,), without padding; `pooled` (n, P)
in bfloat16; `lengths` (n,), tokens before any was cut off; and `crc32` (n,), of tokens and pooled.
"""

import bisect
import hashlib
import math
import shutil
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from pixelspace.config import value
from pixelspace.errors import DataError, NumericalError, ResourceError, UserError
from pixelspace.files import Seal, drop_abandoned, publish
from pixelspace.text.bytes import Bytes
from pixelspace.text.encoder import Encoded, Reader, TextEncoder, check_unicode
from pixelspace.text.minilm import MiniLM
from pixelspace.text.pretrained import Pretrained

FORMAT = 1
BEGUN, MANIFEST = "embeddings.begun.json", "embeddings.json"
_KEY = 16  # bytes
_LOOKED_AT = 1024  # captions whose tokens are counted to say how much room all will take
_AGAIN = "run the same `pixelspace embed` again"


@value
class Plan:
    """Whose embeddings of which captions: the `encoder` and its reader's identity and widths, how many distinct
    captions in all and in a `part`, and the SHA-256 of their keys."""

    encoder: TextEncoder
    identity: str
    width: int
    pooled_width: int
    count: int
    captions: str
    part: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.part <= 1 << 20 or min(self.width, self.pooled_width) < 1:
            raise ValueError("Plan: count, part (up to 2^20) and widths must be positive")

    @property
    def parts(self) -> int:
        """How many files."""
        return math.ceil(self.count / self.part)

    def ids(self, part: int) -> range:
        """The captions of a part."""
        return range(part * self.part, min((part + 1) * self.part, self.count))

    def bytes(self, tokens: float) -> int:
        """What all captions take on the disk where they have so many tokens on average."""
        return math.ceil(self.count * (2 * (tokens * self.width + self.pooled_width) + _KEY + 3 * 8))


@value
class Part:
    """Of a part the first key, its size in bytes, the SHA-256 of its tables, how many tokens it holds and how many of
    its captions are cut."""

    first: str
    bytes: int
    tables: str
    tokens: int
    cut: int


@value
class Manifest:
    """A whole folder of embeddings."""

    plan: Plan
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if len(self.parts) != self.plan.parts:
            raise ValueError(f"Manifest: {len(self.parts)} parts, expected {self.plan.parts}")


_TYPES = {cls.__name__: cls for cls in (Plan, Part, Manifest, Bytes, MiniLM, Pretrained)}
_SEAL = Seal("embeddings", FORMAT, _TYPES, _AGAIN)


Texts = Callable[[int], Sequence[str]]
"""The captions of a sample, by its number."""


def part_path(root: Path, part: int) -> Path:
    """Where a part lies."""
    return root / f"part-{part:05d}.safetensors"


def is_embeddings(folder: Path) -> bool:
    """Whether embeddings are, or are being, written into `folder`."""
    return any((folder / name).is_file() for name in (MANIFEST, BEGUN))


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:_KEY]


def _open_part(path: Path, plan: Plan, part: int) -> tuple[Any, Part]:
    """The file, mapped into memory, and what is to be said of it; raises DataError where it is not whole."""
    n = len(plan.ids(part))
    try:
        size, file = path.stat().st_size, safetensors.safe_open(path, "pt")
        tables = {name: file.get_tensor(name) for name in ("keys", "ends", "lengths", "crc32")}
        tokens = int(tables["ends"][-1])
        expected = {
            **{"keys": ("U8", [n, _KEY]), "ends": ("I64", [n]), "lengths": ("I64", [n]), "crc32": ("I64", [n])},
            **{"tokens": ("BF16", [tokens, plan.width]), "pooled": ("BF16", [n, plan.pooled_width])},
        }
        for name, stated in expected.items():
            found = (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape())
            if found != stated:
                raise ValueError(f"{name} is {found[0]} {found[1]}, expected {stated[0]} {stated[1]}")
    except (OSError, ValueError, IndexError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as embeddings: {error}; delete it and {_AGAIN}") from error
    digest = hashlib.sha256(b"".join(table.numpy().tobytes() for table in tables.values())).hexdigest()
    first, cut = tables["keys"][0].numpy().tobytes().hex(), int((tables["lengths"] > plan.encoder.length).sum())
    return file, Part(first, size, digest, tokens, cut)


def _whole(out: Path, plan: Plan, part: int) -> Part | None:
    try:
        return _open_part(part_path(out, part), plan, part)[1]
    except DataError:
        return None


def _crc32(tokens: Tensor, pooled: Tensor) -> int:
    first, then = (rows.contiguous().view(torch.uint8).numpy().data for rows in (tokens, pooled))
    return zlib.crc32(then, zlib.crc32(first))


@dataclass
class CachedReader(Reader):
    """Looks captions up. Their embeddings are those of the encoder, rounded to bfloat16."""

    root: Path
    manifest: Manifest = field(repr=False)
    length: int
    fill: bool
    device: torch.device
    _open: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        plan = self.manifest.plan
        self.width, self.pooled_width, self.identity = plan.width, plan.pooled_width, plan.identity

    def __reduce__(self) -> tuple:
        return CachedReader, (self.root, self.manifest, self.length, self.fill, self.device)

    @property
    def bytes(self) -> int:
        """What all parts take on the disk."""
        return sum(part.bytes for part in self.manifest.parts)

    @property
    def cut(self) -> int:
        """How many captions have more tokens than are kept."""
        return sum(part.cut for part in self.manifest.parts)

    def _part(self, part: int) -> Any:
        if part not in self._open:
            path = part_path(self.root, part)
            file, found = _open_part(path, self.manifest.plan, part)
            if found != self.manifest.parts[part]:
                raise DataError(f"{path}: is damaged or of other embeddings; delete it and {_AGAIN}")
            self._open[part] = file
        return self._open[part]

    def _find(self, text: str) -> tuple[int, int]:
        """In which part a caption is, and where there."""
        key = _key(text)
        part = bisect.bisect_right(self.manifest.parts, key.hex(), key=lambda part: part.first) - 1
        if part >= 0:
            keys = self._part(part).get_tensor("keys").numpy().view(f"S{_KEY}")[:, 0]
            place = int(np.searchsorted(keys, np.frombuffer(key, f"S{_KEY}")[0]))
            if place < len(keys) and keys[place : place + 1].tobytes() == key:
                return part, place
        raise DataError(
            f"{self.root}: holds no embedding of the caption {text[:60]!r}; run `pixelspace embed` on the images that "
            f"are trained on, into a new folder"
        )

    def _look_up(self, text: str) -> tuple[Tensor, Tensor]:
        """Tokens (L, D) and pooled (P,)."""
        part, i = self._find(text)
        file = self._part(part)
        begin, end = [0, *file.get_slice("ends")[max(i - 1, 0) : i + 1].tolist()][-2:]
        tokens, pooled = file.get_slice("tokens")[begin:end], file.get_slice("pooled")[i : i + 1]
        if _crc32(tokens, pooled) != file.get_slice("crc32")[i : i + 1].item():
            path = part_path(self.root, part)
            raise DataError(f"{path}: the caption {text[:60]!r}: not what its checksum says; delete it and {_AGAIN}")
        return tokens, pooled[0]

    def __call__(self, texts: Sequence[str]) -> Encoded:
        check_unicode(texts)
        found = [self._look_up(text) for text in texts]
        ends = torch.tensor([len(rows) for rows, _ in found], dtype=torch.int64)
        length = self.length if self.fill else int(ends.max()) if found else 1
        tokens = torch.zeros(len(found), length, self.width, dtype=torch.bfloat16)
        pooled = torch.zeros(len(found), self.pooled_width, dtype=torch.bfloat16)
        for i, (rows, summary) in enumerate(found):
            tokens[i, : len(rows)], pooled[i] = rows, summary
        mask = torch.arange(length) < ends[:, None]
        return Encoded(tokens.to(self.device).float(), mask.to(self.device), pooled.to(self.device).float())

    def lengths(self, texts: Sequence[str]) -> list[int]:
        check_unicode(texts)
        places = map(self._find, texts)
        return [int(self._part(part).get_slice("lengths")[i : i + 1].item()) for part, i in places]


@value
class Cached(TextEncoder):
    """The embeddings that `pixelspace embed` wrote into the folder `path` with `encoder`, whose weights need not be on
    the machine: if they are, they must be those that were used; if not, the encoder's settings must be the same."""

    encoder: TextEncoder
    path: str

    def __post_init__(self) -> None:
        if self.encoder.direct is not self.encoder:
            raise ValueError("Cached: encoder is itself a cache; give the encoder that reads captions")

    @property
    def length(self) -> int:
        return self.encoder.length

    @property
    def fill(self) -> bool:
        return self.encoder.fill

    @property
    def direct(self) -> TextEncoder:
        return self.encoder

    def filled(self) -> "Cached":
        return replace(self, encoder=self.encoder.filled())

    def identity(self) -> str | None:
        return self.encoder.identity()

    def open(self, device: torch.device) -> CachedReader:
        root = Path(self.path)
        manifest, identity = read_manifest(root), self.encoder.identity()
        plan = manifest.plan
        same = self.encoder.filled() == plan.encoder if identity is None else identity == plan.identity
        if not same:
            raise UserError(
                f"{root}: embeddings of {plan.encoder} ({plan.identity}), the recipe's encoder is {self.encoder} "
                f"({identity or 'not on this machine'}); run `pixelspace embed` with it into a new folder, or set "
                f"text.encoder to the one of the embeddings"
            )
        return CachedReader(root, manifest, self.length, self.fill, device)


def read_manifest(root: Path) -> Manifest:
    """What a whole folder of embeddings holds.

    Raises:
        DataError: it is not whole.
    """
    if not (root / MANIFEST).is_file():
        if not (root / BEGUN).is_file():
            raise DataError(f"{root}: holds no embeddings: {MANIFEST} is missing; `pixelspace embed` writes them")
        plan, _ = _SEAL.read(root / BEGUN, Plan)
        there = sum(part_path(root, part).exists() for part in range(plan.parts))
        raise DataError(f"{root}: {there} of {plan.parts} parts are there and no {MANIFEST} yet; {_AGAIN}")
    manifest, _ = _SEAL.read(root / MANIFEST, Manifest)
    for part, stated in enumerate(manifest.parts):
        path = part_path(root, part)
        if not path.is_file():
            raise DataError(f"{path}: missing, {MANIFEST} lists it; bring it back or {_AGAIN}")
        if (found := path.stat().st_size) != stated.bytes:
            what = "cut short" if found < stated.bytes else "too long"
            raise DataError(f"{path}: {what}: {found:,} bytes, {MANIFEST} says {stated.bytes:,}; {_AGAIN}")
    return manifest


@dataclass(frozen=True)
class _Distinct:
    """The captions of all samples, each once, by its key; and "", which stands for the absence of one."""

    of_sample: Texts
    keys: np.ndarray  # (n,) of 16 bytes, ascending
    places: np.ndarray  # (n, 2): the sample, and which of its captions; (-1, 0) is ""
    total: int

    @classmethod
    def of(cls, of_sample: Texts, samples: int) -> "_Distinct":
        keys, places = bytearray(_key("")), array("q", (-1, 0))
        for i in range(samples):
            check_unicode(texts := of_sample(i))
            for j, text in enumerate(texts):
                keys += _key(text)
                places.extend((i, j))
        each = np.frombuffer(keys, f"S{_KEY}")
        distinct, first = np.unique(each, return_index=True)
        return cls(of_sample, distinct, np.frombuffer(places, np.int64).reshape(-1, 2)[first], len(each) - 1)

    def texts(self, ids: range) -> list[str]:
        places: list[tuple[int, int]] = self.places[ids.start : ids.stop].tolist()
        found = ["" if i < 0 else self.of_sample(i)[j] for i, j in places]
        for text, key in zip(found, self.keys[ids.start : ids.stop], strict=True):
            if _key(text).rstrip(b"\0") != bytes(key):
                raise DataError(f"the caption {text[:60]!r} is another than a moment ago; {_AGAIN} on data at rest")
        return found


def _part_bytes(texts: list[str], reader: Reader, batch: int, bar: tqdm) -> bytes:
    rows: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # of about one length: less is computed for padding
    for at in range(0, len(order), batch):
        some = order[at : at + batch]
        found = reader([texts[i] for i in some])
        for i, tokens, mask, pooled in zip(some, found.tokens, found.mask, found.pooled, strict=True):
            rows[i] = tokens[mask].bfloat16().cpu(), pooled.bfloat16().cpu()
            if not all(x.isfinite().all() for x in rows[i]):
                raise NumericalError(f"the caption {texts[i][:60]!r}: what the encoder makes of it is not finite")
        bar.update(len(some))
    tokens, pooled = zip(*rows, strict=True)
    tensors = {
        "keys": torch.frombuffer(bytearray(b"".join(map(_key, texts))), dtype=torch.uint8).reshape(-1, _KEY),
        "tokens": torch.cat(tokens),
        "ends": torch.tensor([len(one) for one in tokens]).cumsum(0),
        "pooled": torch.stack(pooled),
        "lengths": torch.tensor(reader.lengths(texts)),
        "crc32": torch.tensor([_crc32(*row) for row in rows]),
    }
    return save(tensors)


def _check_room(plan: Plan, captions: _Distinct, reader: Reader, out: Path, max_bytes: int | None) -> None:
    """Raises ResourceError where the embeddings would take more than `max_bytes`, or than the disk has."""
    some = captions.texts(range(min(_LOOKED_AT, plan.count)))  # by hash, so as good as drawn at random
    lengths = [min(length, plan.encoder.length) for length in reader.lengths(some)]
    need = plan.bytes(sum(lengths) / len(lengths))
    about = f"{out}: the embeddings of {plan.count:,} captions need about {need / 2**30:.3g} GiB"
    if max_bytes is not None and need > max_bytes:
        raise ResourceError(
            f"{about}, and may take {max_bytes / 2**30:.3g} (--max-gib); allow more, take a smaller encoder or length, "
            f"or encode while training (without `pixelspace embed`)"
        )
    there = sum(path.stat().st_size for path in out.glob("part-*.safetensors"))
    free = shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists())).free
    if need - there > free:
        raise ResourceError(f"{about}, and the disk has {free / 2**30:.3g} GiB left; make room or give another folder")


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was embedded: `captions` of all samples, of which `distinct` ones, with "" among them. `reader` looks them
    up; it is None while parts of other processes are still missing."""

    captions: int
    distinct: int
    reader: CachedReader | None


def embed_captions(
    texts: Texts,
    samples: int,
    out: Path,
    encoder: TextEncoder,
    *,
    device: torch.device,
    batch: int = 256,
    part: int = 1024,
    max_bytes: int | None = None,
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
) -> Embedded:
    """Writes what `encoder` makes of the captions of so many `samples`, and of "", into the folder `out`.

    Parts of `part` captions that stand whole are left as they are. Of `world` processes that share the work each has
    its `rank`. How many captions are read at once, `batch`, changes what is written by rounding at most.

    Raises:
        UserError: `out` holds something else or was begun with other captions or settings; a number out of range.
        DataError: no captions, or one that cannot be read.
        NumericalError: embeddings that are not finite.
        ResourceError: they would take more than `max_bytes`, before anything is written; the disk is full or refuses.
    """
    for name, number in (("batch", batch), ("part", part)):
        if number < 1:
            raise UserError(f"{name} must be at least 1, found {number}")
    captions = _Distinct.of(texts, samples)
    if not captions.total:
        raise DataError(f"none of {samples:,} samples has a caption; there is nothing to embed")
    reader = encoder.direct.open(device)
    plan = Plan(
        encoder=encoder.direct.filled(),  # stored embeddings have no padding
        identity=reader.identity,
        width=reader.width,
        pooled_width=reader.pooled_width,
        count=len(captions.keys),
        captions=hashlib.sha256(captions.keys.tobytes()).hexdigest(),
        part=part,
    )
    _check_room(plan, captions, reader, out, max_bytes)
    _SEAL.begin(out, BEGUN, plan)
    mine = range(rank, plan.parts, world)
    to_do = [one for one in mine if not _whole(out, plan, one)]
    total, left = (sum(len(plan.ids(one)) for one in some) for some in (mine, to_do))
    with tqdm(total=total, initial=total - left, unit="cap", desc="embedding", disable=not progress) as bar:
        for one in to_do:
            drop_abandoned(part_path(out, one))
            publish(part_path(out, one), _part_bytes(captions.texts(plan.ids(one)), reader, batch, bar), _AGAIN)
    parts = tuple(found for one in range(plan.parts) if (found := _whole(out, plan, one)))
    if len(parts) < plan.parts:
        return Embedded(captions.total, plan.count, None)
    manifest = Manifest(plan, parts)
    _SEAL.write(out / MANIFEST, manifest)
    return Embedded(captions.total, plan.count, CachedReader(out, manifest, encoder.length, encoder.fill, device))
