"""What samples are compared with: statistics and features in the formats that are about.

| file | from | outputs |
|---|---|---|
| .safetensors | `write_reference` | as its header says |
| .npz of mu, sigma, mu_s, sigma_s, arr_0 | ADM (Dhariwal and Nichol 2021) | inception.pool, .spatial; images |
| .npz of mu, sigma | pytorch-fid, TTUR, EDM, clean-fid | untagged |
| .npz of feats | clean-fid's KID | untagged, features |
| .pkl of fid, fd_dinov2 | EDM2 (Karras et al. 2024) | inception.pool, dinov2.cls |
| .pkl of raw_mean, raw_cov | StyleGAN's FeatureStats, cd-fvd | untagged |
| .pt | torch-fidelity's cache | untagged |
| .npy of rows | CMMD | untagged, features |

An untagged file does not say which network saw which images. Covariances have the divisor N - 1; StyleGAN's sums are
taken so, against its own code.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelspace.data.decode import shown
from pixelspace.errors import CheckpointError, DataError, UserError
from pixelspace.evaluation.arrays import IMAGES, ArrayImages
from pixelspace.evaluation.features import Extractor
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.npy import npz_members, open_member, open_npy
from pixelspace.evaluation.reference_file import ReferenceHeader, check_features, check_moments, read_own
from pixelspace.evaluation.stats import Moments
from pixelspace.evaluation.stats import moments as moments_of_rows
from pixelspace.foreign import Array, read_numpy_pickle, read_pickle

UNTAGGED = "untagged"
POOL, SPATIAL, CLIP, DINOV2 = "inception.pool", "inception.spatial", "clip.image", "dinov2.cls"

# Files of these formats do not say what made them, but their projects do: how the extractor's name begins.
_CONVENTIONS = {
    "adm": {POOL: "Inception-2015-12-05, resize tf1", SPATIAL: "Inception-2015-12-05, resize tf1"},
    "edm2": {POOL: "Inception-2015-12-05, resize tf1", DINOV2: "DINOv2 facebook/dinov2-large, resize edm2_bicubic"},
}


@dataclass(frozen=True)
class Reference:
    """Statistics, features or both, by output. `images` are ADM's, for precision and recall; `header` is that of our
    own format; `sha256` is that of the file."""

    path: Path
    format: str
    sha256: str
    moments: Mapping[str, Moments] = field(default_factory=dict, repr=False)
    features: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    images: Images | None = None
    header: ReferenceHeader | None = None

    def _key(self, output: str, *tables: Mapping[str, Any]) -> str:
        there = {name for table in tables for name in table}
        for name in (output, UNTAGGED):
            if name in there:
                return name
        raise DataError(f"{self.path}: has no {output}; there is {', '.join(sorted(there)) or 'nothing of the kind'}")

    def moments_of(self, output: str) -> Moments:
        """The moments of an output, or else the untagged ones; of the features where the file has those alone.

        Raises:
            DataError: it has neither.
        """
        key = self._key(output, self.moments, self.features)
        return self.moments[key] if key in self.moments else moments_of_rows([self.features[key]])

    def features_of(self, output: str) -> Tensor:
        """The rows (n, D) of an output, or else the untagged ones.

        Raises:
            DataError: it has neither.
        """
        return self.features[self._key(output, self.features)]

    def find(self, extractor: Extractor, output: str, rows: bool) -> str | None:
        """What the file calls an extractor's output of which it has all rows, or else moments; None: it has it not."""
        for name in (extractor.key(output), output, UNTAGGED):
            width = extractor.outputs[output]
            if name in self.features and self.features[name].shape[1] == width:
                return name
            if not rows and name in self.moments and len(self.moments[name].mean) == width:
                return name
        return None

    def mismatches(self, expected: ReferenceHeader) -> list[str]:
        """What makes a comparison with what `expected` describes meaningless, or cannot be known, in short phrases."""
        found = [phrase for output in expected.outputs for phrase in self._output_mismatches(output)]
        of_images = ("crop", "size")
        if self.header:
            pairs = [(name, getattr(self.header, name), getattr(expected, name)) for name in of_images]
            found += [f"{name} is {ours!r}, expected {theirs!r}" for name, ours, theirs in pairs if ours != theirs]
        elif self.images and (size := self.images.shape[1:]) != expected.size:
            found.append(f"size is {size}, expected {expected.size}")
        elif self.format not in _CONVENTIONS:
            found.append(f"crop and size are not stated, expected {expected.crop!r} and {expected.size}")
        return found

    def _output_mismatches(self, expected: Any) -> list[str]:
        name = expected.output
        if name not in {*self.moments, *self.features}:
            if UNTAGGED in {*self.moments, *self.features}:
                return [f"{name}: extractor, weights and resize are not stated, expected {expected.extractor}"]
            return [f"{name}: is not there, only {', '.join(sorted({*self.moments, *self.features}))}"]
        if self.header is None:
            made = _CONVENTIONS.get(self.format, {}).get(name, "")
            fits = made and expected.extractor.startswith(made)
            return [] if fits else [f"{name}: extractor is {made or 'not stated'}, expected {expected.extractor}"]
        ours = next(output for output in self.header.outputs if output.output == name)
        pairs = [(part, getattr(ours, part), getattr(expected, part)) for part in ("extractor", "weights")]
        return [f"{name}: {part} is {ours}, expected {theirs}" for part, ours, theirs in pairs if ours != theirs]


@dataclass(frozen=True)
class _Found:
    format: str
    moments: dict[str, Moments] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    images: Images | None = None
    header: ReferenceHeader | None = None


def _moments(where: str, count: int, mean: Tensor, cov: Tensor) -> Moments:
    return check_moments(where, Moments(count, mean.double(), cov.double()))


def _read_npz(path: Path, cache: Path | None) -> _Found:
    members = npz_members(path)

    def load(name: str) -> Tensor:
        if name not in members:
            raise DataError(f"{path}: no {name} in it, found {shown(', '.join(members)) or 'nothing'}")
        return open_member(path, members[name]).load()

    def pair(suffix: str) -> Moments:
        return _moments(f"{path}: mu{suffix}, sigma{suffix}", 0, load(f"mu{suffix}"), load(f"sigma{suffix}"))

    if "feats" in members:
        return _Found("clean-fid features", features={UNTAGGED: check_features(f"{path}: feats", load("feats"))})
    if IMAGES in members and "mu" not in members:
        raise DataError(f"{path}: holds images ({IMAGES}) and no statistics (mu, sigma); give it as images")
    images = ArrayImages(open_member(path, members[IMAGES]), cache=cache) if IMAGES in members else None
    if images is None and "mu_s" not in members:
        return _Found("mu and sigma", {UNTAGGED: pair("")})
    suffixes = {"": POOL, "_s": SPATIAL, "_clip": CLIP}
    return _Found(
        "adm", {name: pair(suffix) for suffix, name in suffixes.items() if f"mu{suffix}" in members}, {}, images
    )


def _tensor(where: str, item: Any) -> Tensor:
    found = item.tensor if isinstance(item, Array) else item
    if not isinstance(found, Tensor):
        raise DataError(f"{where}: expected an array of numbers, found {type(item).__name__}")
    return found


def _count(where: str, item: Any) -> int:
    if type(item) is not int or item < 2:
        raise DataError(f"{where}: expected a count of 2 or more, found {item!r:.40}")
    return item


def _pair(where: str, count: int, data: Any) -> Moments:
    if not (isinstance(data, dict) and {"mu", "sigma"} <= data.keys()):
        raise DataError(f"{where}: expected mu and sigma, found {type(data).__name__}")
    return _moments(where, count, _tensor(f"{where}: mu", data["mu"]), _tensor(f"{where}: sigma", data["sigma"]))


def _feature_stats(path: Path, data: dict[Any, Any]) -> _Found:
    """Sums of rows and of their outer products (StyleGAN's FeatureStats)."""
    n = _count(f"{path}: num_items", data.get("num_items"))
    moments, features = {}, {}
    if parts := data.get("all_features"):
        rows = [check_features(f"{path}: all_features", _tensor(f"{path}: all_features", part)) for part in parts]
        if len({part.shape[1] for part in rows}) > 1:
            raise DataError(f"{path}: all_features: rows of different widths")
        features = {UNTAGGED: torch.cat(rows)}
    if data.get("raw_mean") is not None:
        sums = _tensor(f"{path}: raw_mean", data["raw_mean"]).double()
        squares = _tensor(f"{path}: raw_cov", data.get("raw_cov")).double()
        if sums.ndim != 1 or squares.shape != (len(sums), len(sums)):
            raise DataError(f"{path}: raw_mean is {[*sums.shape]}, raw_cov {[*squares.shape]}; expected (D,), (D, D)")
        mean = sums / n
        moments = {UNTAGGED: _moments(f"{path}: raw_cov", n, mean, (squares - n * torch.outer(mean, mean)) / (n - 1))}
    if not (moments or features):
        raise DataError(f"{path}: a FeatureStats that holds neither sums nor features")
    return _Found("stylegan", moments, features)


def _read_pkl(path: Path, cache: Path | None) -> _Found:
    data = read_numpy_pickle(path)
    if isinstance(data, dict) and "num_items" in data:
        return _feature_stats(path, data)
    names = {"fid": POOL, "fd_dinov2": DINOV2}
    if not (isinstance(data, dict) and names.keys() & data.keys()):
        found = f"a dictionary of {[*data][:8]!r:.200}" if isinstance(data, dict) else type(data).__name__
        raise DataError(f"{path}: expected EDM2's fid, fd_dinov2 or StyleGAN's FeatureStats, found {found}")
    n = _count(f"{path}: num_images", data.get("num_images"))
    return _Found("edm2", {name: _pair(f"{path}: {key}", n, data[key]) for key, name in names.items() if key in data})


def _read_pt(path: Path, cache: Path | None) -> _Found:
    data = read_pickle(path, arrays=True)
    if isinstance(data, Tensor | Array):
        return _Found(
            "torch-fidelity features", features={UNTAGGED: check_features(str(path), _tensor(str(path), data))}
        )
    return _Found("torch-fidelity statistics", {UNTAGGED: _pair(str(path), 0, data)})


def _read_npy(path: Path, cache: Path | None) -> _Found:
    array = open_npy(path)
    if len(array.shape) != 2:
        raise DataError(f"{path}: expected rows of features (n, D), found {array.dtype} {array.shape}")
    return _Found("rows (CMMD)", features={UNTAGGED: check_features(str(path), array.load())})


def _read_safetensors(path: Path, cache: Path | None) -> _Found:
    header, moments, features = read_own(path)
    return _Found("pixelspace", moments, features, header=header)


_READERS: dict[str, Callable[[Path, Path | None], _Found]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".pkl": _read_pkl,
    ".pt": _read_pt,
    ".pth": _read_pt,
}


def read_reference(path: Path, *, cache: Path | None = None) -> Reference:
    """The statistics or features in a file of any format above. ADM's images are not read; what is found out of them
    later is kept in the folder `cache`.

    Raises:
        UserError: another kind of file.
        DataError: absent, damaged, hostile, or not what its kind holds.
    """
    if path.suffix.lower() not in _READERS:
        raise UserError(f"{path}: expected statistics in {', '.join(_READERS)}; found {path.suffix or 'no suffix'!r}")
    try:
        found = _READERS[path.suffix.lower()](path, cache)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except CheckpointError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return Reference(path, found.format, sha256, found.moments, found.features, found.images, found.header)
