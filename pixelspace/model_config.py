"""What a model is, but for its weights."""

from typing import Literal

from pixelspace.config import value
from pixelspace.data.codec import Codec, Pixels
from pixelspace.errors import UserError
from pixelspace.noise.process import Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.sampling.generate import Sampling
from pixelspace.text.encoder import TextEncoder
from pixelspace.training.stage import Stage, check_threshold
from pixelspace.types import BackboneConfig


@value
class ModelConfig:
    """All of a model but its weights. `size` is that of an image, or of each frame of a clip; `classes` may be empty
    where only their number is known. Of a network that draws an image at several sizes at once `pyramid` says how
    (None: the image alone). `text` reads prompts; `text_identity` says which weights it had in training ("": any)."""

    backbone: BackboneConfig
    process: Process
    sampling: Sampling
    size: tuple[int, int]
    codec: Codec = Pixels()
    pyramid: Pyramid | None = None
    text: TextEncoder | None = None
    text_identity: str = ""
    classes: tuple[str, ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        pyramid = self.pyramid or Pyramid((1,))
        if (pyramid.factors, pyramid.tiles) != (self.backbone.pyramid, self.backbone.tiles):
            raise UserError(
                f"pyramid: the network has levels {self.backbone.pyramid} and {self.backbone.tiles} x "
                f"{self.backbone.tiles} frames; found {self.pyramid}"
            )
        check_threshold(self.sampling, self.codec)

    @classmethod
    def of(cls, stage: Stage, classes: tuple[str, ...] = (), text_identity: str = "") -> "ModelConfig":
        """What a stage trains."""
        return cls(
            backbone=stage.backbone,
            process=stage.objective.process,
            sampling=stage.sampling,
            size=stage.size,
            codec=stage.codec,
            pyramid=stage.objective.layout,
            text=stage.text.direct if stage.text else None,
            text_identity=text_identity,
            classes=classes if stage.backbone.num_classes else (),
            precision=stage.precision,
        )
