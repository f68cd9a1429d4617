"""What generated images are compared with: statistics of a file, or features computed of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pixelspace.config import to_data
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.blocks import Network, Rows, compute
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.features import Extractor, Opened
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.metrics import Metric, Wants
from pixelspace.evaluation.protocols import Protocol
from pixelspace.evaluation.reference_file import AS_THEY_ARE, QUANTISE, OutputHeader, ReferenceHeader
from pixelspace.evaluation.references import Reference
from pixelspace.evaluation.stats import Moments
from pixelspace.evaluation.views import chosen


def _sides(images: Images) -> str:
    return "x".join(map(str, images.shape[1:]))


class Known:
    """A reference as metrics read it: what its file has, and else what is computed of its images.

    `lacking` are the metrics for which images must be looked at; `images` are those, None where no metric lacks
    anything.
    """

    def __init__(self, metrics: Sequence[Metric], reference: Reference | Images | None, protocol: Protocol):
        if all(metric.wants == "nothing" for metric in metrics):
            reference = None
        self.protocol = protocol
        self.file = reference if isinstance(reference, Reference) else None
        self.computed: Rows | None = None
        self.lacking = list[Metric]()
        self._named: dict[tuple[str, Wants], str] = {}
        self._moments: dict[str, Moments] = {}
        for metric in metrics:
            if metric.wants == "nothing":
                continue
            name = self.file.find(metric.extractor, metric.output, metric.wants == "rows") if self.file else None
            if name is None:
                self.lacking.append(metric)
            else:
                self._named[metric.key, metric.wants] = name
        self.images = self._images(reference) if self.lacking else None

    def _images(self, reference: Reference | Images | None) -> Images:
        images = reference if isinstance(reference, Images) else self.file.images if self.file else None
        names = ", ".join(metric.name for metric in self.lacking)
        if images is None and self.file is None:
            raise UserError(f"reference: {names} needs one: give --reference with statistics or images")
        if images is None and self.file is not None:
            what = {"rows": "features", "moments": "statistics"}[self.lacking[0].wants]
            tables = {"statistics": self.file.moments, "features": self.file.features}
            has = ", ".join(f"{', '.join(sorted(table))} ({kind})" for kind, table in tables.items() if table)
            raise UserError(
                f"{self.file.path}: has no {what} of {self.lacking[0].key} for {names}, only {has}; give images or "
                f"another file as --reference, or leave them out by --metric"
            )
        assert images is not None
        most = self.protocol.references
        return chosen(images, most, self.protocol.seed) if most is not None and len(images) > most else images

    @property
    def path(self) -> Path | None:
        """Of its file."""
        return self.file.path if self.file is not None else None

    def check_shape(self, images: Images) -> None:
        """Raises DataError where images of another shape would be compared."""
        if self.images is not None and self.images.shape != images.shape:
            raise DataError(
                f"{self.images.source}: the reference is {_sides(self.images)}, the images are {_sides(images)}; make "
                f"both of one size"
            )

    def _headers(self, extractor: Extractor, opened: Opened) -> tuple[OutputHeader, ...]:
        keys = set(map(extractor.key, extractor.outputs))
        names = {name for (key, _), name in self._named.items() if key in keys}
        return tuple(OutputHeader(name, extractor.name, opened.sha256) for name in sorted(names))

    def mismatches(self, networks: Sequence[Network], images: Images) -> list[str]:
        """Why what is taken of the file cannot be compared with what networks make of `images`, in short phrases."""
        if self.file is None:
            return []
        header = self.file.header
        crop = AS_THEY_ARE if header is not None and header.crop == AS_THEY_ARE else self.protocol.crop
        size, found = images.shape[1:], list[str]()
        for network in networks:
            if outputs := self._headers(*network):
                expected = ReferenceHeader(
                    outputs, QUANTISE, crop, size, images.source, images.fingerprint, len(images)
                )
                found += [phrase for phrase in self.file.mismatches(expected) if phrase not in found]
        return found

    def compute(self, networks: Sequence[Network], folder: Path, computing: Computing) -> None:
        """Has the features of its images computed, where they are needed, by those networks that need them."""
        if self.images is not None:
            needed = [network for network in networks if any(metric.extractor == network[0] for metric in self.lacking)]
            self.computed = compute(self.images, needed, folder, **computing.share)

    def moments(self, key: str) -> Moments:
        """As the metrics that want moments read them."""
        if self.file is not None and (name := self._named.get((key, "moments"))):
            return self.file.moments_of(name)
        if key not in self._moments:  # of every seed
            self._moments[key] = self._rows.moments(key)
        return self._moments[key]

    def rows(self, key: str) -> Tensor:
        """As the metrics that want all features read them."""
        if self.file is not None and (name := self._named.get((key, "rows"))):
            return self.file.features_of(name)
        return self._rows.rows(key)

    @property
    def _rows(self) -> Rows:
        assert self.computed is not None, "what the file lacks is computed before a metric asks for it"
        return self.computed

    def about(self) -> dict[str, Any] | None:
        """What a report says of it."""
        found: dict[str, Any] = {}
        if self.file is not None:
            header = to_data(self.file.header) if self.file.header is not None else None
            found = {"source": self.file.path.name, "format": self.file.format, "sha256": self.file.sha256}
            found["header"] = header
        if self.images is not None:
            found.setdefault("source", self.images.source)
            found |= {"images": len(self.images), "fingerprint": self.images.fingerprint}
        return found or None
