"""Statistics of a set of images, made to be compared with."""

import fcntl
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pixelspace.errors import UserError
from pixelspace.evaluation.blocks import BEGUN, Network, Rows, compute
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.metrics import Metric
from pixelspace.evaluation.protocols import Protocol
from pixelspace.evaluation.reference_file import QUANTISE, OutputHeader, ReferenceHeader, require_new, write_reference


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
        DataError: images that are all equal, one that cannot be read, or features that are not finite.
    """
    require_new(out)
    metrics = [metric for metric in metrics or protocol.metrics if metric.wants != "nothing"]
    if not metrics:
        raise UserError(f"metric: nothing that is asked of {protocol.name} is compared with a reference")
    networks = computing.open(metrics)
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
        rows.check_differ()
        _write(out, images, rows, networks, metrics, crop, features)
        shutil.rmtree(folder)
    return out
