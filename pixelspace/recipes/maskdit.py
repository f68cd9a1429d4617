"""Recipes of MaskDiT (Zheng et al. 2024): masked training, then unmasked tuning, on latents or pixels."""

from dataclasses import replace

from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.data.emoji import Emoji
from pixelspace.data.loader import Data
from pixelspace.noise.levels import Karras, LogNormal
from pixelspace.noise.process import EDM, Process
from pixelspace.noise.weighting import Unit
from pixelspace.objectives.denoising import Denoising
from pixelspace.objectives.masked import Masked, MaskRatio
from pixelspace.sampling.generate import Sampling
from pixelspace.training.ema import EMA
from pixelspace.training.optim import AdamW, Constant
from pixelspace.training.stage import Inherit, Recipe, Stage

# Width, depth and heads of DiT's sizes (Peebles and Xie 2023, Table 1; H of the MaskDiT code).
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16), "H": (1280, 32, 16)}

# The original has XL's at every size, and with it a masked S is dearer than a whole DiT-S/2. Those of S, B and L are
# ours: XL's share of the encoder's width and depth, at its 32 features a head.
DECODERS = {
    "S": Decoder(160, 3, 5),
    "B": Decoder(320, 4, 10),
    "L": Decoder(448, 7, 14),
    "XL": Decoder(512, 8, 16),
    "H": Decoder(512, 8, 16),
}


def dit(name: str, patch: int = 2, *, size: tuple[int, int] = (32, 32), num_classes: int = 1000) -> MaskDiTConfig:
    """DiT of a size S, B, L, XL or H on latents of `size`."""
    width, depth, num_heads = SIZES[name]
    return MaskDiTConfig(width, depth, num_heads, size, patch, num_classes=num_classes, decoder=None)


def maskdit(
    name: str,
    patch: int = 2,
    *,
    size: tuple[int, int] = (32, 32),
    num_classes: int = 1000,
    decoder: Decoder | None = None,
) -> MaskDiTConfig:
    """MaskDiT of a size S, B, L, XL or H on latents of `size`, with the size's own decoder or another."""
    return replace(dit(name, patch, size=size, num_classes=num_classes), decoder=decoder or DECODERS[name])


_PROCESS, _LEVELS = Process(EDM(0.5)), LogNormal(-1.2, 1.2)
_WHOLE = Denoising(_PROCESS, _LEVELS, Unit(), drop_rate=0.1)
_MASKED = Masked(_PROCESS, _LEVELS, (2, 2), MaskRatio(0.5), mae=0.1, drop_rate=0.1)
_SAMPLING = Sampling("heun", steps=40, levels=Karras(0.002, 80.0), guidance=1.5)
_CARRIED = Inherit("masked", weights="raw", ema="carry")


EMOJI = MaskDiTConfig(256, 8, 4, (32, 32), 4, channels=3, num_classes=8, decoder=Decoder(112, 2, 4))


def emoji() -> Recipe:
    """All packaged emoji by group, in pixels at 32 px with half of the 64 patches shown, then tuned on all of them:
    some twenty minutes on two CPU cores."""
    batch = 64
    masked = Stage(
        name="masked",
        backbone=EMOJI,
        objective=replace(_MASKED, patch=(4, 4)),
        data=Data(Emoji(), holdout=0.05),
        size=(32, 32),
        batch=batch,
        images=1500 * batch,
        sampling=replace(_SAMPLING, steps=18),
        optimizer=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0),
        schedule=Constant(warmup_images=100 * batch),
        ema=EMA(power=0.75, max_decay=0.995),
        precision="bf16",
        save_images=250 * batch,
        sample_images=250 * batch,
        sample_count=32,
        validate_images=250 * batch,
    )
    tuned = replace(
        masked,
        name="tuned",
        objective=_WHOLE,
        images=250 * batch,
        schedule=Constant(cooldown=1.0),
        init=_CARRIED,
    )
    return Recipe("maskdit-emoji", (masked, tuned))
