"""Where and by which processes features are computed, and the networks that do it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pixelspace.evaluation.blocks import Network
from pixelspace.evaluation.features import Extractor
from pixelspace.evaluation.metrics import Metric
from pixelspace.evaluation.weights import Weights


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

    @property
    def share(self) -> dict[str, Any]:
        """Which blocks `blocks.compute` does here, and whether it shows how far it is."""
        return {"rank": self.rank, "world": self.world, "progress": self.progress}

    def open(self, metrics: Sequence[Metric]) -> list[Network]:
        """Each network that `metrics` read, once; captions are for those alone that a metric reads them of."""
        extractors: list[Extractor] = []
        for metric in metrics:
            if metric.extractor not in extractors:
                extractors.append(metric.extractor)
        read = [metric.extractor for metric in metrics if metric.reads_captions]
        networks = [(extractor, extractor.open(self.weights, self.device)) for extractor in extractors]
        return [
            (extractor, opened if extractor in read else replace(opened, embed_text=None, cut_off=None))
            for extractor, opened in networks
        ]
