"""Our own file of reference statistics: one .safetensors that says how its numbers were made.

For each output it holds `<output>.mean` (D,) and `<output>.cov` (D, D) in float64 and, if kept, `<output>.features`
(n, D) in float32 or float16. Its metadata holds the header, the SHA-256 of each tensor, and one of all that.
"""

import os
from collections.abc import Mapping
from dataclasses import field
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import DataError, ResourceError, UserError
from pixelspace.evaluation.rows import check_rows
from pixelspace.evaluation.stats import Moments
from pixelspace.files import Seal, publish
from pixelspace.foreign import read_safetensors
from pixelspace.nn.weights import digest

FORMAT = 1
QUANTISE, AS_THEY_ARE = "8 bits", "as they are"  # what `quantise` and `crop` of a header may say
_KEY = "pixelspace"
_ASYMMETRY = 1e-6  # of the greatest entry; sums of outer products in float64 stay below 1e-12


@value
class OutputHeader:
    """What gave an output: the extractor's name, which says its resize too, and the SHA-256 of its weights."""

    output: str
    extractor: str
    weights: str


@value
class ReferenceHeader:
    """How statistics were made: by which `outputs`; of images quantised and cropped how, of `size` (H, W), or (T, H, W)
    for clips; of which `source`, by its `fingerprint`; and of how many, `count`."""

    outputs: tuple[OutputHeader, ...]
    quantise: str
    crop: str
    size: tuple[int, ...]
    source: str
    fingerprint: str
    count: int
    pixelspace: str = field(default_factory=lambda: version("pixelspace"))

    def __post_init__(self) -> None:
        names = [output.output for output in self.outputs]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"ReferenceHeader: outputs must be there and differ, found {names}")
        if self.count < 2 or len(self.size) not in (2, 3) or min(self.size) < 1:
            raise ValueError(f"ReferenceHeader: count {self.count} of size {self.size}: expected 2 or more of (H, W)")


@value
class Contents:
    """All that a file says of itself: its header, and the SHA-256 of each tensor by name."""

    header: ReferenceHeader
    tensors: tuple[tuple[str, str], ...]


_TYPES = {cls.__name__: cls for cls in (OutputHeader, ReferenceHeader, Contents)}
_SEAL = Seal("reference statistics", FORMAT, _TYPES, "make it again")


def check_moments(where: str, moments: Moments) -> Moments:
    """`moments`, if they can be those of anything.

    Raises:
        DataError: shapes that do not fit, numbers that are not finite, a covariance that is none.
    """
    mean, cov = moments.mean, moments.cov
    if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)):
        raise DataError(f"{where}: expected a mean (D,) and a covariance (D, D), found {[*mean.shape]}, {[*cov.shape]}")
    if not (mean.isfinite().all() and cov.isfinite().all()):
        raise DataError(f"{where}: mean or covariance has numbers that are not finite")
    greatest = cov.abs().max()
    if (cov - cov.T).abs().max() > _ASYMMETRY * greatest:
        raise DataError(f"{where}: its covariance is not symmetric")
    if cov.diagonal().min() < -_ASYMMETRY * greatest:
        raise DataError(f"{where}: its covariance has a negative variance")
    return moments


def check_features(where: str, features: Tensor) -> Tensor:
    """`features`, if they are finite floating-point rows (n, D), as they are.

    Raises:
        DataError: they are not.
    """
    if not features.is_floating_point():
        raise DataError(f"{where}: expected features in floating point, found {features.dtype}")
    check_rows(features, where)
    return features


def _check(where: str, header: ReferenceHeader, tensors: Mapping[str, Tensor]) -> None:
    names = {output.output for output in header.outputs}
    needed = {f"{name}.{part}" for name in names for part in ("mean", "cov")}
    if odd := needed.symmetric_difference(name for name in tensors if not name.endswith(".features")):
        raise DataError(f"{where}: {min(odd)}: expected a mean and a covariance of each of {', '.join(sorted(names))}")
    for name in names:
        mean, cov = tensors[f"{name}.mean"], tensors[f"{name}.cov"]
        if mean.dtype != torch.float64 or cov.dtype != torch.float64:
            raise DataError(f"{where}: {name}: expected float64, found {mean.dtype} and {cov.dtype}")
        check_moments(f"{where}: {name}", Moments(header.count, mean, cov))
    for key in tensors.keys() - needed:
        name, rows = key.removesuffix(".features"), tensors[key]
        if name not in names:
            raise DataError(f"{where}: {key}: features of an output that the header does not have")
        check_features(f"{where}: {key}", rows)
        if rows.dtype not in (torch.float32, torch.float16):
            raise DataError(f"{where}: {key}: expected float32 or float16, found {rows.dtype}")
        if rows.shape[1] != len(tensors[f"{name}.mean"]) or len(rows) > header.count:
            width = len(tensors[f"{name}.mean"])
            raise DataError(f"{where}: {key}: {[*rows.shape]}, expected width {width} and at most {header.count} rows")


def require_new(path: Path) -> None:
    """Raises UserError where no statistics can be written: another suffix, or something stands there already."""
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: statistics are written as .safetensors, not {path.suffix or 'without a suffix'}")
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already, and is not overwritten; give another name")


def write_reference(
    path: Path, header: ReferenceHeader, moments: Mapping[str, Moments], features: Mapping[str, Tensor] | None = None
) -> None:
    """Publishes statistics by output, and features where they are to be kept, as one .safetensors.

    Raises:
        UserError: as `require_new`.
        DataError: what the header says is not what there is, or numbers are unsound.
        ResourceError: it cannot be written.
    """
    require_new(path)
    tensors = {}
    for name, found in moments.items():
        if found.count != header.count:
            raise DataError(f"{path}: {name}: moments of {found.count} rows, the header says {header.count}")
        tensors |= {f"{name}.mean": found.mean.contiguous(), f"{name}.cov": found.cov.contiguous()}
    tensors |= {f"{name}.features": rows.cpu().contiguous() for name, rows in (features or {}).items()}
    _check(str(path), header, tensors)
    digests = tuple((name, digest({name: tensor})) for name, tensor in sorted(tensors.items()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{path.parent}: cannot be made: {error.strerror}; give another folder") from error
    publish(path, save(tensors, {_KEY: _SEAL.text(Contents(header, digests))}), _SEAL.then)


def read_own(path: Path) -> tuple[ReferenceHeader, dict[str, Moments], dict[str, Tensor]]:
    """What `write_reference` wrote, every tensor checked.

    Raises:
        DataError: damaged, or of something else.
        CheckpointError: not a .safetensors at all.
    """
    tensors, metadata = read_safetensors(path)
    if _KEY not in metadata:
        raise DataError(f"{path}: a .safetensors without our description; it holds no reference statistics")
    contents, _ = _SEAL.parse(metadata[_KEY], path, Contents)
    header, stated = contents.header, dict(contents.tensors)
    for name in sorted(stated.keys() | tensors.keys()):
        if name not in tensors or name not in stated:
            raise DataError(f"{path}: {name}: {'missing' if name in stated else 'not described'}; make it again")
        if digest({name: tensors[name]}) != stated[name]:
            raise DataError(f"{path}: {name}: is damaged: not what its SHA-256 says; make it again")
    _check(str(path), header, tensors)
    names = [output.output for output in header.outputs]
    moments = {name: Moments(header.count, tensors[f"{name}.mean"], tensors[f"{name}.cov"]) for name in names}
    features = {name: tensors[key] for name in names if (key := f"{name}.features") in tensors}
    return header, moments, features
