"""Every backbone at a size that takes milliseconds: (config, image size, what it is conditioned on)."""

from dataclasses import replace

import torch

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood, ShiftedWindow
from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig, UNetText
from pixelspace.backbones.unet_body import Micro, UNetBody, UNetLevel
from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig, UViTConfig
from pixelspace.nn.text import Text

HDIT = HDiTConfig(
    levels=(
        Level(16, 1, Neighborhood(8, kernel=3), dropout=0.1),
        Level(24, 1, ShiftedWindow(2, 8)),
        Level(32, 2, Global(16)),
    ),
    patch=(2, 2),
    mapping_width=16,
    mapping_cond=5,
    num_classes=4,
)
PLAIN = HDiTConfig(levels=(Level(16, 1, None), Level(32, 1, Global(16))), channels=1, patch=(2, 4), mapping_width=16)

TEXT = Text(6, 5, inner=16, depth=1, head_dim=8)
WITH_TEXT = HDiTConfig(
    levels=(Level(16, 1, Neighborhood(8, kernel=3)), Level(32, 2, Global(16), cross=True)),
    patch=(2, 2),
    mapping_width=16,
    text=TEXT,
    micro=("size", "corner"),
)

MASKDIT = MaskDiTConfig(24, 2, 3, (8, 12), num_classes=4, decoder=Decoder(16, 1, 2))
PLAIN_DIT = MaskDiTConfig(16, 1, 2, (8, 8), patch=4, channels=3, decoder=None)
CLS_TOKEN = replace(MASKDIT, cls_token=True, feature=6, decoder=Decoder(16, 2, 2, mask_token=False, takes_cls=True))
SELF_FEATURE = replace(MASKDIT, cls_token=True, encoder_feature=True, feature=6)

TEXT_DIT = replace(MASKDIT, text=replace(TEXT, depth=0), cross=True)

CORE = CoreConfig(16, 2, 8, (2, 3), cond_width=12, text=replace(TEXT, pooled=0), num_classes=4, dropout=0.1)
SHALLOW = ShallowUViTConfig(CORE, stride=4, width=8)
UVIT = UViTConfig(CORE, (8, 12), blocks=1, seam="affine")
PLAIN_CORE = CoreConfig(16, 1, 8, (2, 2), cond_width=12)

SMALL = {"time_width": 16, "groups": 4, "attention_groups": 4, "heads": 2}
UNET = UNetConfig(
    UNetBody((UNetLevel(8, 1), UNetLevel(12, 1)), **SMALL, ffn=True, micro=(Micro("scale", 64.0),)),
    text=UNetText(6, proj=8, depth=1, masked=True, heads=2),
    num_classes=4,
)
PLAIN_UNET = UNetConfig(
    UNetBody((UNetLevel(8, 1), UNetLevel(8, 1, attention=1)), channels=1, **{**SMALL, "time_width": 0}, dropout=0.1),
    middle=False,
)
INNERMOST = UNetConfig(UNetBody((UNetLevel(8, 1, attention=1),), **SMALL), middle=False, text=UNetText(6))
OUTER = UNetBody((UNetLevel(4, 1), UNetLevel(8, 1, attention=1)), **SMALL, micro=(Micro("quality", 0.5),))
NESTED = NestedUNetConfig(OUTER, INNERMOST)
STILL = UNetConfig(UNetBody((UNetLevel(8, 1),), **SMALL), middle=False, num_classes=4)
TIME = UNetBody((UNetLevel(32, 1, temporal=1), UNetLevel(8, 1), UNetLevel(8, 1)), **SMALL)
SPACE = UNetBody((UNetLevel(8, 1), UNetLevel(8, 1)), **SMALL)
CLIP = NestedUNetConfig(SPACE, NestedUNetConfig(TIME, STILL, frames="time", rotary=True), frames="space")

ROUND_HDIT = NestedUNetConfig(OUTER, replace(WITH_TEXT, mapping_cond=5, num_classes=4))
ROUND_UVIT = NestedUNetConfig(replace(OUTER, noise_unit=256.0), replace(UVIT, core=replace(CORE, text=TEXT)))
ROUND_SHALLOW = NestedUNetConfig(replace(SPACE, channels=1), ShallowUViTConfig(PLAIN_CORE, stride=2, channels=1))

CASES = {
    "hdit": (HDIT, (16, 32)),
    "hdit-plain": (PLAIN, (8, 32)),
    "hdit-text": (WITH_TEXT, (8, 16)),
    "maskdit-text": (TEXT_DIT, (8, 12)),
    "maskdit": (MASKDIT, (8, 12)),
    "maskdit-cls-token": (CLS_TOKEN, (8, 12)),
    "maskdit-self-feature": (SELF_FEATURE, (8, 12)),
    "dit": (PLAIN_DIT, (8, 8)),
    "shallow-uvit": (SHALLOW, (8, 12)),
    "shallow-uvit-plain": (ShallowUViTConfig(PLAIN_CORE, stride=2, channels=1), (4, 4)),
    "uvit": (UVIT, (16, 24)),
    "unet": (UNET, (4, 6)),
    "unet-plain": (PLAIN_UNET, (4, 4)),
    "nested": (NESTED, (8, 16)),
    "nested-clip": (CLIP, (8, 16)),
    "round-hdit": (ROUND_HDIT, (16, 32)),
    "round-uvit": (ROUND_UVIT, (32, 48)),
    "round-shallow-uvit": (ROUND_SHALLOW, (8, 8)),
    "uvit-plain": (UViTConfig(PLAIN_CORE, (8,), patch=1, seam="norm"), (4, 4)),
}

# Compiled in the long campaign only: of parts that others have.
SLOW_TO_COMPILE = {
    *("hdit-plain", "maskdit-cls-token", "maskdit-self-feature", "shallow-uvit-plain", "unet-plain", "uvit-plain"),
    *("nested-clip", "round-hdit", "round-uvit", "hdit", "maskdit", "unet", "uvit", "shallow-uvit"),
}


def conditions(config, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """One of everything a backbone may take."""
    generator = torch.Generator().manual_seed(1)
    return {
        "label": torch.arange(batch) % 5 - 1,
        "aug": torch.randn(batch, 9, generator=generator, dtype=dtype),
        "feature": torch.randn(batch, 6, generator=generator, dtype=dtype),
        "mapping": torch.randn(batch, 5, generator=generator, dtype=dtype),
        "text": torch.randn(batch, 7, 6, generator=generator, dtype=dtype),
        "text_mask": torch.arange(7) < torch.arange(batch)[:, None] % 7 + 1,
        "pooled": torch.randn(batch, 5, generator=generator, dtype=dtype),
        "size": torch.tensor([[64, 48]]) * torch.arange(1, batch + 1)[:, None],
        "corner": torch.tensor([[0, 7]]) * torch.arange(batch)[:, None],
        "scale": 20.0 * torch.arange(1, batch + 1, dtype=dtype),
        "quality": torch.arange(batch, dtype=dtype),
        "unknown": torch.zeros(batch),
    }
