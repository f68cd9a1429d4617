"""From images to a report: features computed once, metrics of them, and the record of both."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.blocks import Network, Rows, compute
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.known import Known
from pixelspace.evaluation.metrics import Frechet, Metric
from pixelspace.evaluation.protocols import Protocol
from pixelspace.evaluation.references import Reference
from pixelspace.evaluation.report import Report, described, fingerprint, software, summarised


def _notes(metrics: Sequence[Metric], made: Rows, known: Known) -> list[str]:
    notes = []
    for rows in (made, known.computed):
        if rows is not None:
            rows.check_differ()
    if made.repeated:
        notes.append(f"{made.repeated:,} of the {len(made):,} images are copies of another")
    if known.computed is not None and known.computed.described.fingerprint == made.described.fingerprint:
        notes.append("the images are the reference itself")
    for metric in metrics:
        width = metric.extractor.outputs[metric.output]
        if not isinstance(metric, Frechet):
            continue
        for count, what in ((len(made), "images"), (known.moments(metric.key).count, "reference images")):
            if 0 < count <= width:
                notes.append(
                    f"{metric.name}: {count:,} {what} for {width:,} features: the covariance is not of full rank, and "
                    f"the number is far above that of many"
                )
    return notes


def _check(
    sets: Sequence[Images], metrics: Sequence[Metric], protocol: Protocol, captions: Sequence[str] | None
) -> None:
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


def _cut_off(networks: Sequence[Network], captions: Sequence[str]) -> list[str]:
    notes = []
    for extractor, opened in networks:
        if opened.cut_off is not None and (long := int(opened.cut_off(captions).sum())):
            notes.append(f"{long:,} captions are longer than {extractor.name} reads; their ends are left out")
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
    _check(sets, metrics, protocol, captions)
    read = captions if any(metric.reads_captions for metric in metrics) else None
    known = Known(metrics, reference, protocol)
    known.check_shape(first)
    networks = computing.open(metrics)
    notes = list(first.notes)
    if len(sets) < protocol.repeats:
        notes.append(f"{len(sets)} set of images, where {protocol.name} judges {protocol.repeats}, one a seed")
    if wrong := known.mismatches(networks, first):
        if not computing.trust:
            raise UserError(f"{known.path}: {'; '.join(wrong)}; take another reference, or add --trust-reference")
        notes += [f"reference: {what}" for what in wrong]

    known.compute(networks, reference_features or out / "reference", computing)
    if known.images is not None:
        notes += [f"reference: {note}" for note in known.images.notes]
    made = []
    for images, seed in zip(sets, seeds, strict=True):
        folder = out / (f"features-seed-{seed}" if len(sets) > 1 else "features")
        made.append(compute(images, networks, folder, captions=read, keep=computing.keep, **computing.share))
    if not all(rows.complete for rows in (*made, known.computed) if rows is not None):
        return None
    for rows in made:
        notes += [note for note in _notes(metrics, rows, known) if note not in notes]
    runs = [
        [number for metric in metrics for number in metric.numbers(rows, known, seed)]
        for rows, seed in zip(made, seeds, strict=True)
    ]
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
                **({"captions sha256": made[0].described.captions} if read is not None else {}),
                **(about or {}),
            },
            "reference": known.about(),
            "networks": [{"name": extractor.name, "sha256": opened.sha256} for extractor, opened in networks],
            "numbers": summarised(
                runs, "" if len(first) == protocol.count else f" ({len(first):,} images, not {protocol.count:,})"
            ),
            "notes": notes + (_cut_off(networks, read) if read is not None else []),
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
