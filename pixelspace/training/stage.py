"""What is trained, as values: a `Recipe` is stages in order, a `Stage` is one run of the loop."""

from typing import Literal

from pixelspace.config import nearest, value
from pixelspace.data.codec import Codec, Pixels
from pixelspace.data.loader import Data
from pixelspace.errors import UserError
from pixelspace.growth.transfer import IDENTITY, Rule
from pixelspace.objectives.denoising import Objective
from pixelspace.random import Rng
from pixelspace.sampling.generate import Sampling
from pixelspace.text.encoder import TextEncoder
from pixelspace.training.ema import EMA
from pixelspace.training.optim import AdamW, Constant, Schedule
from pixelspace.types import BackboneConfig, Evaluator


def check_threshold(sampling: Sampling, codec: Codec) -> None:
    """Raises UserError for a threshold of what is no image."""
    if sampling.threshold != "none" and codec.factor > 1:
        raise UserError(
            f"sampling.threshold {sampling.threshold!r}: thresholds are of pixels in [-1, 1], and "
            f"{type(codec).__name__} gives latents; set it to 'none'"
        )


@value
class Inherit:
    """What a stage takes from an earlier one: its averaged or raw weights by `rules`, which account for every name, and
    on request the average and the moments of what is copied; what is fresh begins its own.

    With `match_images` the network's `seam` is set so that what enters its core has, over so many training images, the
    mean and deviation by channel that it had in the earlier stage (Vasconcelos et al. 2024 do not say how they did it).
    """

    stage: str
    rules: tuple[Rule, ...] = IDENTITY
    weights: Literal["ema", "raw"] = "ema"
    ema: Literal["fresh", "carry"] = "fresh"
    optimizer: bool = False
    match_images: int = 0

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError('Inherit: rules is empty; Rule("*") takes everything')
        if self.match_images < 0:
            raise ValueError(f"Inherit: match_images cannot be negative, found {self.match_images}")


@value
class Stage:
    """One run of the loop. `size` is (height, width) of an image or of each frame of a clip, `batch` and all `*_images`
    count images, or clips, over all devices.

    `micro` is how many images go through the network of one device at once (0: its whole share of the batch); it does
    not change what is learnt. The batch is shared out in `lanes` of consecutive images (0: as many as the largest power
    of two that divides it, up to 64), of which each device takes as many. With the `reduction` "exact" gradients are
    made lane by lane and added in the same pairs on any number of devices, so that the weights have the same bits.
    Every `save_images` a checkpoint is written (the last three and every `keep_every`-th stay), every `sample_images`
    `sample_count` images are drawn, every `validate_images` the held-out loss is measured, every `log_steps` a row of
    metrics is written. `text` reads the captions for a network that reads text. What the patterns of `freeze` cover
    does not learn. Each of `evaluators` judges the averaged weights in its own time. More than `bad_steps` steps that
    are not finite among 100 stop the run.

    Weights, gradients, moments and the average are float32. `precision` is what the network computes in; `tf32` lets
    CUDA round the factors of products of float32 to 10 bits. `ema_device` "cpu" keeps the average in the host's memory:
    the weights are copied to it at every step.
    """

    name: str
    backbone: BackboneConfig
    objective: Objective
    data: Data
    size: tuple[int, int]
    batch: int
    images: int
    sampling: Sampling = Sampling()
    codec: Codec = Pixels()
    text: TextEncoder | None = None
    optimizer: AdamW = AdamW()
    schedule: Schedule = Constant()
    ema: EMA = EMA()
    init: Inherit | None = None
    freeze: tuple[str, ...] = ()
    evaluators: tuple[Evaluator, ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = False
    ema_device: Literal["same", "cpu"] = "same"
    micro: int = 0
    lanes: int = 0
    reduction: Literal["fast", "exact"] = "fast"
    checkpointing: bool = False
    compile: bool = False
    save_images: int = 2_560_000
    keep_every: int = 10
    sample_images: int = 256_000
    sample_count: int = 36
    validate_images: int = 256_000
    validate_count: int = 1024
    log_steps: int = 10
    bad_steps: int = 5

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise ValueError(f"Stage: name must be letters, digits, '-' and '_', found {self.name!r}")
        counts = ("batch", "images", "save_images", "sample_images", "validate_images", "log_steps", "keep_every")
        for field in (*counts, "sample_count", "validate_count"):
            if getattr(self, field) < 1:
                raise ValueError(f"Stage: {field} must be at least 1, found {getattr(self, field)}")
        if self.images % self.batch:
            near = max(self.images // self.batch, 1) * self.batch
            raise ValueError(f"Stage: images {self.images} is not a multiple of batch {self.batch}; nearest is {near}")
        if self.micro < 0 or (self.micro and self.batch % self.micro):
            fits = [n for n in range(1, self.batch + 1) if self.batch % n == 0]
            raise ValueError(f"Stage: micro {self.micro} must be 0 or divide batch {self.batch}: one of {fits}")
        if self.lanes < 0 or (self.lanes and self.batch % self.lanes):
            fits = [n for n in range(1, self.batch + 1) if self.batch % n == 0]
            raise ValueError(f"Stage: lanes {self.lanes} must be 0 or divide batch {self.batch}: one of {fits}")
        if self.reduction == "exact" and self.shared_lanes & (self.shared_lanes - 1):
            raise ValueError(f"Stage: reduction 'exact' needs a power of two as lanes, found {self.lanes}")
        names = [evaluator.name for evaluator in self.evaluators]
        if len(set(names)) < len(names):
            raise ValueError(f"Stage: two evaluators of one name among {names}")
        if self.bad_steps < 0:
            raise ValueError(f"Stage: bad_steps cannot be negative, found {self.bad_steps}")
        if self.backbone.tiles > 1 and not isinstance(self.codec, Pixels):
            raise UserError(
                f"stage {self.name!r}: the network is for clips, and {type(self.codec).__name__} is for images; set "
                f"codec to Pixels"
            )
        if self.data.source.frames != (side := self.backbone.tiles) ** 2:
            room = f"a grid of {side} x {side} frames" if side > 1 else "single images"
            raise UserError(
                f"stage {self.name!r}: the network is for {room}, and a sample of the data has "
                f"{self.data.source.frames}; set data.source.frames to {side**2}"
            )
        self.backbone.check_size(*self.shape[1:])
        if self.backbone.channels != self.codec.channels:
            raise UserError(
                f"stage {self.name!r}: the network has {self.backbone.channels} channels, its codec "
                f"({type(self.codec).__name__}) {self.codec.channels}"
            )
        if self.data.augment and self.codec.factor > 1:
            raise UserError(f"stage {self.name!r}: data.augment moves pixels, not latents; set it to 0")
        if (self.text is None) != (self.backbone.text_widths is None):
            missing = (
                "reads text, and the stage has no encoder: set text"
                if self.text is None
                else ("reads no text: set backbone.text, or text to null")
            )
            raise UserError(f"stage {self.name!r}: the network {missing}")
        if self.evaluators and self.backbone.tiles > 1:
            raise UserError(
                f"stage {self.name!r}: evaluators judge images, and this network draws clips; leave them out"
            )
        check_threshold(self.sampling, self.codec)
        self.objective.check(self.backbone)

    @property
    def shared_lanes(self) -> int:
        """In how many lanes the batch is shared out."""
        return self.lanes or min(self.batch & -self.batch, 64)

    @property
    def warnings(self) -> list[str]:
        """What is likely to go wrong or is not meant, and why."""
        found = [one.warning for one in self.evaluators if one.warning]
        values, width = self.backbone.entry
        if values >= width and self.objective.process.precond.says_noise:
            found.append(
                f"{values} values of the image become {width} numbers, which must carry the noise too that "
                f"{type(self.objective.process.precond).__name__} predicts, and cannot: such training failed at large "
                f"patches (Li and He 2025, Table 2); predict the image (X0), make the patch smaller or the network "
                f"wider"
            )
        return [f"stage {self.name!r}: {text}" for text in found]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample in model space."""
        return self.shape_of(self.size)

    def shape_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, H, W) in model space of a sample of `size`: a clip there is one image, whose tiles are its frames."""
        height, width = self.codec.latent_size(size)
        return self.codec.channels, self.backbone.tiles * height, self.backbone.tiles * width


@value
class Recipe:
    """Stages in order; each may inherit from one before it. `seed` decides every draw."""

    name: str
    stages: tuple[Stage, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"Recipe {self.name}: give at least one stage")
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen:
                raise UserError(f"Recipe {self.name}: two stages are called {stage.name!r}")
            if stage.init and stage.init.stage not in seen:
                raise UserError(
                    f"stage {stage.name!r} inherits from {stage.init.stage!r}, which does not come before it; "
                    f"{nearest(stage.init.stage, seen)}"
                )
            if stage.init and self[stage.init.stage].codec != stage.codec:
                raise UserError(
                    f"stage {stage.name!r} works on {type(stage.codec).__name__} and inherits from "
                    f"{stage.init.stage!r}, which learnt another range of data ({self[stage.init.stage].codec}); "
                    f"give both the same codec"
                )
            seen.append(stage.name)

    @property
    def split(self) -> Rng:
        """By what samples are held out: the same ones in all stages, or later ones would be judged by what earlier ones
        have seen."""
        return Rng(Rng(self.seed).key("stage", self.stages[0].name))

    def __getitem__(self, name: str) -> Stage:
        """The stage called so."""
        return next(stage for stage in self.stages if stage.name == name)
