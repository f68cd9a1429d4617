"""From images to a report: features computed once, metrics of them, and the record of both."""

import fcntl
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelspace.config import to_data
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.blocks import BEGUN, Network, Rows, compute
from pixelspace.evaluation.features import Extractor, Opened
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.metrics import Frechet, Metric, Wants
from pixelspace.evaluation.protocols import Protocol
from pixelspace.evaluation.reference_file import OutputHeader, ReferenceHeader, require_new, write_reference
from pixelspace.evaluation.references import Reference
from pixelspace.evaluation.report import Report, described, fingerprint, software, summarised
from pixelspace.evaluation.stats import Moments
from pixelspace.evaluation.views import chosen
from pixelspace.evaluation.weights import Weights
from pixelspace.types import Number

QUANTISE = "8 bits"
AS_THEY_ARE = "as they are"


@dataclass(frozen=True)
class Computing:
    """Where weights are, what computes, and which of how many processes this one is. `keep` writes generated images;
    `trust` takes a reference that does not say, or says otherwise, how it was made."""

    weights: Weights
    device: torch.device
    rank: int = 0
    world: int = 1
    progress: bool = True
    keep: bool = False
    trust: bool = False


class Known:
    """What generated images are compared with: what a file has of it, and else features computed of its images.

    `lacking` are the metrics for which its images must be looked at.
    """

    def __init__(self, metrics: Sequence[Metric], file: Reference | None):
        self.file = file
        self.computed: Rows | None = None
        self.lacking = list[Metric]()
        self._named: dict[tuple[str, Wants], str] = {}
        self._moments: dict[str, Moments] = {}
        for metric in metrics:
            if metric.wants == "nothing":
                continue
            name = file.find(metric.extractor, metric.output, metric.wants == "rows") if file is not None else None
            if name is None:
                self.lacking.append(metric)
            else:
                self._named[metric.key, metric.wants] = name

    def headers(self, extractor: Extractor, opened: Opened) -> tuple[OutputHeader, ...]:
        """How what is taken of the file should have been made where it stands for this network, by the file's names."""
        keys = set(map(extractor.key, extractor.outputs))
        names = {name for (key, _), name in self._named.items() if key in keys}
        return tuple(OutputHeader(name, extractor.name, opened.sha256) for name in sorted(names))

    def moments(self, key: str) -> Moments:
        """As the metrics that want moments read them."""
        if self.file is not None and (name := self._named.get((key, "moments"))):
            return self.file.moments_of(name)
        if key not in self._moments:  # of every seed
            self._moments[key] = self._computed.moments(key)
        return self._moments[key]

    def rows(self, key: str) -> Tensor:
        """As the metrics that want all features read them."""
        if self.file is not None and (name := self._named.get((key, "rows"))):
            return self.file.features_of(name)
        return self._computed.rows(key)

    @property
    def _computed(self) -> Rows:
        assert self.computed is not None, "what the file lacks is computed before a metric asks for it"
        return self.computed


def _opened(metrics: Sequence[Metric], computing: Computing) -> list[Network]:
    extractors: list[Extractor] = []
    for metric in metrics:
        if metric.extractor not in extractors:
            extractors.append(metric.extractor)
    read = [metric.extractor for metric in metrics if metric.reads_captions]
    networks = [(extractor, extractor.open(computing.weights, computing.device)) for extractor in extractors]
    return [
        (extractor, opened if extractor in read else replace(opened, embed_text=None, cut_off=None))
        for extractor, opened in networks
    ]


def _notes(metrics: Sequence[Metric], made: Rows, known: Known) -> list[str]:
    notes = []
    if made.repeated == len(made) - 1:
        raise DataError(f"{made.described.source}: all {len(made):,} images are equal; there is nothing to measure")
    if made.repeated:
        notes.append(f"{made.repeated:,} of the {len(made):,} images are copies of another")
    if known.computed is not None and known.computed.described.fingerprint == made.described.fingerprint:
        notes.append("the images are the reference itself")
    for metric in metrics:
        width = metric.extractor.outputs[metric.output]
        if isinstance(metric, Frechet) and len(made) <= width:
            notes.append(
                f"{metric.name}: {len(made):,} images for {width:,} features: the covariance is not of full rank, and "
                f"the number is far above that of many images"
            )
    return notes


def evaluate(
    protocol: Protocol,
    sets: Sequence[Images],
    out: Path,
    computing: Computing,
    *,
    metrics: Sequence[Metric] | None = None,
    reference: Reference | Images | None = None,
    reference_features: Path | None = None,
    captions: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Report | None:
    """Judges `sets`, one for each seed, by `protocol` and writes a report into `out`.

    What is computed stays in `out`, so that the same call goes on where it stopped; the features of reference images
    stay in `reference_features`, by default in `out` too. `about` is recorded. Of several processes those that find
    work of others missing at their end return None.

    Raises:
        UserError: a reference or captions are missing or of something else, or `out` holds another evaluation.
        DataError: too few images, images of another size, all equal, unreadable, or with features not finite.
    """
    began = time.monotonic()
    metrics = protocol.metrics if metrics is None else metrics
    first = sets[0]
    seeds = list(range(protocol.seed, protocol.seed + protocol.repeats))[: len(sets)]
    if all(metric.wants == "nothing" for metric in metrics):
        reference = None
    file = reference if isinstance(reference, Reference) else None
    known_images = reference if isinstance(reference, Images) else file.images if file is not None else None
    if known_images is not None and protocol.references is not None and len(known_images) > protocol.references:
        known_images = chosen(known_images, protocol.references, protocol.seed)
    known = Known(metrics, file)
    if known.lacking and known_images is None:
        names = ", ".join(metric.name for metric in known.lacking)
        if file is None:
            raise UserError(f"reference: {names} needs one: give --reference with statistics or images")
        what = {"rows": "features", "moments": "statistics"}[known.lacking[0].wants]
        has = ", ".join(sorted({*file.moments, *file.features}))
        raise UserError(
            f"{file.path}: has no {what} of {known.lacking[0].key} for {names}, only {has}; give images or another "
            f"file as --reference, or leave them out by --metric"
        )
    readers = [metric.name for metric in metrics if metric.reads_captions]
    if readers and captions is None:
        raise UserError(f"prompts: {readers[0]} compares images with their captions: give them by --prompts")
    if captions is not None and not readers and protocol.labels != "captions":
        raise UserError(f"prompts: nothing that is asked of {protocol.name} reads captions; leave them out")
    for images in sets:
        if len(images) < 2:
            raise DataError(f"{images.source}: {len(images)} images; two or more are needed")
        if captions is not None and len(captions) != len(images):
            raise UserError(f"prompts: {len(captions):,} lines for {len(images):,} images")
    if known.lacking and known_images is not None and known_images.shape != first.shape:
        raise DataError(
            f"{known_images.source}: the reference is {_sides(known_images)}, the images are {_sides(first)}; make "
            f"both of one size"
        )
    networks = _opened(metrics, computing)
    notes = list(first.notes)
    if len(sets) < protocol.repeats:
        notes.append(f"{len(sets)} set of images, where {protocol.name} judges {protocol.repeats}, one a seed")
    if file is not None and (wrong := _mismatches(file, known, networks, protocol, first)):
        if not computing.trust:
            raise UserError(f"{file.path}: {'; '.join(wrong)}; take another reference, or add --trust-reference")
        notes += [f"reference: {what}" for what in wrong]

    split = {"rank": computing.rank, "world": computing.world, "progress": computing.progress}
    if known.lacking and known_images is not None:
        needed = [network for network in networks if any(metric.extractor == network[0] for metric in known.lacking)]
        known.computed = compute(known_images, needed, reference_features or out / "reference", **split)
        notes += [f"reference: {note}" for note in known_images.notes]
    made = []
    for images, seed in zip(sets, seeds, strict=True):
        folder = out / (f"features-seed-{seed}" if len(sets) > 1 else "features")
        read = captions if readers else None
        made.append(compute(images, networks, folder, captions=read, keep=computing.keep, **split))
    if not all(rows.complete for rows in (*made, known.computed) if rows is not None):
        return None
    for rows in made:
        notes += [note for note in _notes(metrics, rows, known) if note not in notes]
    runs: list[list[Number]] = []
    for rows, seed in zip(made, seeds, strict=True):
        runs.append([number for metric in metrics for number in metric.numbers(rows, known, seed)])
    labelled = "" if len(first) == protocol.count else f" ({len(first):,} images, not {protocol.count:,})"
    for extractor, opened in networks:
        if captions is not None and opened.cut_off is not None and (long := int(opened.cut_off(captions).sum())):
            notes.append(f"{long:,} captions are longer than {extractor.name} reads; their ends are left out")
    report = Report(
        {
            "protocol": described(protocol),
            "fingerprint": fingerprint(protocol),
            "images": {
                "source": first.source,
                "count": len(first),
                "shape": list(first.shape),
                "fingerprints": [images.fingerprint for images in sets],
                "seeds": seeds,
                **({"captions sha256": made[0].described.captions} if readers else {}),
                **(about or {}),
            },
            "reference": _about(file, known_images if known.lacking else None),
            "networks": [{"name": extractor.name, "sha256": opened.sha256} for extractor, opened in networks],
            "numbers": summarised(runs, labelled),
            "notes": notes,
            "software": {
                **software(computing.device),
                "features": "float32, in batches of 32 filled up",
                "statistics": "float64",
                "processes": computing.world,
                "seconds": round(time.monotonic() - began, 1),
            },
        }
    )
    report.save(out)
    return report


def _mismatches(
    file: Reference, known: Known, networks: Sequence[Network], protocol: Protocol, images: Images
) -> list[str]:
    """Why what is taken of a file cannot be compared with what the networks make of `images`, in short phrases."""
    crop = AS_THEY_ARE if file.header is not None and file.header.crop == AS_THEY_ARE else protocol.crop
    size, found = images.shape[1:], list[str]()
    for network in networks:
        if outputs := known.headers(*network):
            expected = ReferenceHeader(outputs, QUANTISE, crop, size, images.source, images.fingerprint, len(images))
            found += [phrase for phrase in file.mismatches(expected) if phrase not in found]
    return found


def _sides(images: Images) -> str:
    return "x".join(map(str, images.shape[1:]))


def _about(file: Reference | None, images: Images | None) -> dict[str, Any] | None:
    if file is not None:
        header = to_data(file.header) if file.header is not None else None
        found = {"source": file.path.name, "format": file.format, "sha256": file.sha256, "header": header}
    elif images is not None:
        found = {"source": images.source}
    else:
        return None
    return {**found, "images": len(images), "fingerprint": images.fingerprint} if images is not None else found


def reference_of(
    images: Images,
    protocol: Protocol,
    out: Path,
    computing: Computing,
    *,
    metrics: Sequence[Metric] | None = None,
    crop: str,
    features: bool = False,
) -> Path | None:
    """Writes the statistics, and with `features` the features, of `images` by the protocol's networks into the file
    `out`; `crop` says how the images were cut. What is computed on the way stays beside it.

    Of several processes those that find work of others missing at their end, or another at the writing, return None.

    Raises:
        UserError: something stands at `out` already, it is no .safetensors, or no metric reads a reference.
        DataError: an image that cannot be read, or features that are not finite.
    """
    require_new(out)
    metrics = [metric for metric in metrics or protocol.metrics if metric.wants != "nothing"]
    if not metrics:
        raise UserError(f"metric: nothing that is asked of {protocol.name} is compared with a reference")
    networks = _opened(metrics, computing)
    folder = out.with_name(f"{out.name}.features")
    rows = compute(images, networks, folder, rank=computing.rank, world=computing.world, progress=computing.progress)
    try:
        begun = (folder / BEGUN).open("rb")
    except FileNotFoundError:
        return None
    with begun:
        with suppress(OSError):  # where a file system has no locks, processes that end together may both write
            fcntl.flock(begun, fcntl.LOCK_EX)
        if not rows.complete:
            return None
        _write(out, images, rows, networks, metrics, crop, features)
        shutil.rmtree(folder)
    return out


def _write(
    out: Path,
    images: Images,
    rows: Rows,
    networks: Sequence[Network],
    metrics: Sequence[Metric],
    crop: str,
    features: bool,
) -> None:
    headers, found, kept = [], {}, {}
    for extractor, opened in networks:
        for output in extractor.outputs:
            key = extractor.key(output)
            if any(metric.key == key for metric in metrics):
                headers.append(OutputHeader(key, extractor.name, opened.sha256))
                found[key] = rows.moments(key)
                if features:
                    kept[key] = rows.rows(key)
    header = ReferenceHeader(
        outputs=tuple(headers),
        quantise=QUANTISE,
        crop=crop,
        size=images.shape[1:],
        source=images.source,
        fingerprint=images.fingerprint,
        count=len(images),
    )
    write_reference(out, header, found, kept)
