"""A protocol that judges a run while it trains."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.evaluate import evaluate
from pixelspace.evaluation.protocols import Protocol, clips
from pixelspace.evaluation.views import Made
from pixelspace.evaluation.weights import Weights
from pixelspace.types import Evaluator, Look, Number


@value
class Monitor(Evaluator):
    """`protocol` every `every_images` images, against the stage's own training images as they are trained on; one that
    draws by captions, by those of the held-out samples, against their images.

    `best` is the number whose best checkpoint is kept (\"\": that of the protocol's first metric).
    """

    protocol: Protocol
    every_images: int = 256_000
    best: str = ""

    def __post_init__(self) -> None:
        if self.every_images < 1:
            raise ValueError(f"Monitor: every_images must be at least 1, found {self.every_images}")
        if clips(self.protocol):
            raise UserError(f"Monitor: {self.protocol.name} judges clips, and a stage makes images")
        if self.protocol.size is not None:
            raise UserError(f"Monitor: {self.protocol.name} judges at {self.protocol.size}, a stage at its own size")

    @property
    def name(self) -> str:
        return self.protocol.name

    @property
    def warning(self) -> str:
        if self.every_images >= self.protocol.count:
            return ""
        return (
            f"{self.name} draws {self.protocol.count:,} images after every {self.every_images:,} that are learnt from: "
            f"judging will take most of the time; give more as --judge-images"
        )

    def _require(self, images: bool, held: bool) -> None:
        if not images:
            raise UserError(f"{self.name}: this stage has latents, no images, to be compared with")
        if self.protocol.labels == "captions" and not held:
            raise UserError(
                f"{self.name}: draws by captions of held-out images, and this stage reads none, or holds none out; set "
                f"data.holdout, or judge by another protocol"
            )

    def check(self, images: bool, held: bool, weights: Path) -> None:
        self._require(images, held)
        for extractor in dict.fromkeys(metric.extractor for metric in self.protocol.metrics):
            extractor.open(Weights(weights), torch.device("cpu"))

    def evaluate(self, look: Look) -> Sequence[Number]:
        self._require(look.read is not None, look.held is not None)
        assert look.read is not None
        protocol, count, captions = self.protocol, self.protocol.count, None
        reference = Made("training images", look.trained_on, look.shape, look.count, look.read)
        if protocol.labels == "captions" and (held := look.held):
            captions = held.captions[:count]
            count = len(captions)
            reference = Made("held-out images", held.known_as, look.shape, len(held.captions), held.read)

        def drawn(seed: int) -> Made:
            def draw(numbers: range):
                labels, texts = protocol.label_of(numbers, look.classes, seed), captions or ()
                return look.draw(seed, numbers, labels, texts[numbers.start : numbers.stop])

            return Made("this run's images", f"{look.drawn}, seed {seed}", look.shape, count, draw)

        report = evaluate(
            protocol,
            [drawn(protocol.seed + run) for run in range(protocol.repeats)],
            look.folder,
            Computing(Weights(look.weights), look.device, progress=look.progress),
            reference=reference,
            reference_features=look.shared,
            captions=captions,
        )
        assert report is not None  # one process
        for features in look.folder.glob("features*"):
            shutil.rmtree(features)
        return [
            Number(row["name"], row["value"], row["better"] == "lower", row["details"])
            for row in report.data["numbers"]
        ]
