"""Models small enough to be exported in a second or two."""

import torch

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.backbones.maskdit import MaskDiTConfig
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig
from pixelspace.backbones.unet_body import UNetBody, UNetLevel
from pixelspace.model import Model
from pixelspace.model_config import ModelConfig
from pixelspace.nn.text import Text
from pixelspace.noise.levels import Karras
from pixelspace.noise.process import EDM, VPV, Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.sampling.generate import Sampling
from pixelspace.text.bytes import Bytes

_SAMPLING = Sampling("dpmpp_2m", steps=3, levels=Karras(0.02, 20.0))
_BODY = {"time_width": 16, "groups": 4, "attention_groups": 4, "heads": 2}

LABELLED = ModelConfig(
    HDiTConfig(
        levels=(Level(16, 1, Neighborhood(8, kernel=3)), Level(16, 1, Global(8))),
        patch=(2, 2),
        mapping_width=16,
        num_classes=3,
    ),
    Process(EDM(0.5)),
    _SAMPLING,
    (8, 12),
    classes=("cat", "dog", "newt"),
)
PLAIN = ModelConfig(
    MaskDiTConfig(16, 1, 2, (8, 8), patch=4, channels=3, num_classes=3, decoder=None),
    Process(EDM(0.5)),
    _SAMPLING,
    (8, 8),
)
READING = ModelConfig(
    HDiTConfig(
        levels=(Level(16, 1, Global(8), cross=True),),
        patch=(4, 4),
        mapping_width=16,
        text=Text(256, 256, inner=16, depth=1, head_dim=8),
        micro=("size", "corner"),
    ),
    Process(EDM(0.5)),
    _SAMPLING,
    (8, 8),
    text=Bytes(length=12),
)
PYRAMID = ModelConfig(
    NestedUNetConfig(
        UNetBody((UNetLevel(4, 1), UNetLevel(8, 1)), **_BODY),
        UNetConfig(UNetBody((UNetLevel(8, 1),), **_BODY), middle=False),
    ),
    Process(VPV()),
    _SAMPLING,
    (8, 8),
    pyramid=Pyramid((1, 2)),
)


def made(config: ModelConfig) -> Model:
    """The model with weights none of which is zero, so that every part counts."""
    torch.manual_seed(3)
    network = config.backbone.build()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return Model(config, network.state_dict(), "cpu")
