"""Recipes of MaskDiT (Zheng et al. 2024): masked training, then unmasked tuning, on latents or pixels."""

from dataclasses import replace

from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.data.codec import Pixels
from pixelspace.data.emoji import Emoji
from pixelspace.data.folder import Folder
from pixelspace.data.latents import Latents
from pixelspace.data.loader import Data
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.noise.levels import Karras, LogNormal
from pixelspace.noise.process import EDM, Process
from pixelspace.noise.weighting import Unit
from pixelspace.objectives.denoising import Denoising, Objective
from pixelspace.objectives.masked import Masked, MaskRatio
from pixelspace.recipes.debug import shrunk
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


def _imagenet(side: int, steps: int) -> Stage:
    """The masked stage on latents of `side` pixels; `encode` makes them."""
    backbone = maskdit("XL", size=(side // 8, side // 8))
    return Stage(
        name="masked",
        backbone=backbone,
        objective=_MASKED,
        data=Data(Latents(f"imagenet{side}-latents"), crop="adm", flip=False, workers=8),
        size=(side, side),
        batch=1024,
        images=steps * 1024,
        sampling=_SAMPLING,
        codec=KLVAE(),
        optimizer=AdamW(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, clip=0.0),
        ema=EMA(power=0.0, max_decay=0.9999),
        precision="bf16",
        micro=128,
        compile=True,
        save_images=25_000 * 1024,
    )


def _tuned(stage: Stage, steps: int, batch: int, objective: Objective = _WHOLE) -> Stage:
    """All patches, half the rate, full precision but for TF32, as in the original."""
    return replace(
        stage,
        name="tuned",
        objective=objective,
        batch=batch,
        images=steps * batch,
        optimizer=replace(stage.optimizer, lr=5e-5),
        precision="fp32",
        tf32=True,
        micro=64,
        init=_CARRIED,
    )


def imagenet256() -> Recipe:
    """ImageNet at 256 px: 2M steps at mask 0.5, then 100k on all patches (the released one: after 75k)."""
    masked = _imagenet(256, 2_000_000)
    return Recipe("maskdit-imagenet256", (masked, _tuned(masked, 100_000, 1024)))


def imagenet256_cosine() -> Recipe:
    """As imagenet256, tuned while the mask falls to nothing as cos^4; in 5 shapes, for the compiler's sake."""
    masked = _imagenet(256, 2_000_000)
    falling = replace(_MASKED, mask=MaskRatio(0.5, "cosine", power=4, multiple=32))
    return Recipe("maskdit-imagenet256-cosine", (masked, _tuned(masked, 100_000, 1024, falling)))


def imagenet512() -> Recipe:
    """ImageNet at 512 px: 1M steps at mask 0.5, then 50k at batch 512 on all patches."""
    masked = _imagenet(512, 1_000_000)
    masked = replace(masked, micro=32)
    return Recipe("maskdit-imagenet512", (masked, replace(_tuned(masked, 50_000, 512), micro=16)))


OWN64 = MaskDiTConfig(384, 12, 6, (64, 64), 4, channels=3, decoder=DECODERS["S"])


def _own(name: str, stage: Stage, batch: int) -> Recipe:
    masked = replace(
        stage,
        batch=batch,
        images=100_000 * batch,
        sampling=replace(_SAMPLING, guidance=1.0),
        schedule=Constant(warmup_images=500 * batch),
        ema=EMA(power=0.75, max_decay=0.9999),
        micro=0,
        compile=False,
        save_images=1000 * batch,
        sample_images=2000 * batch,
        validate_images=1000 * batch,
    )
    tuned = _tuned(masked, 10_000, batch, replace(_WHOLE, drop_rate=0.0))
    return Recipe(name, (masked, replace(tuned, micro=0, schedule=Constant(cooldown=1.0))))


def own64() -> Recipe:
    """Your own folder of images at 64 px, in pixels: MaskDiT-S with patch 4, masked, then tuned."""
    data = Data(Folder("images"), holdout=0.05, workers=2)
    objective = replace(_MASKED, patch=(4, 4), drop_rate=0.0)
    stage = replace(
        _imagenet(256, 1), backbone=OWN64, objective=objective, data=data, size=(64, 64), codec=Pixels(), micro=0
    )
    return _own("maskdit-64", stage, 128)


def own_latents256() -> Recipe:
    """The latents of your own images at 256 px: MaskDiT-B/2, masked, then tuned. `--data` takes what `encode` wrote."""
    data = Data(Latents("latents256"), crop="adm", flip=False, holdout=0.05, workers=2)
    objective = replace(_MASKED, drop_rate=0.0)
    stage = replace(_imagenet(256, 1), backbone=maskdit("B", num_classes=0), objective=objective, data=data)
    return _own("maskdit-latents256", stage, 128)


def _debug(recipe: Recipe, side: int, patch: int, objectives: tuple[Objective, ...]) -> Recipe:
    backbone = MaskDiTConfig(32, 2, 4, (side, side), patch, channels=3, num_classes=8, decoder=Decoder(16, 1, 2))
    stages = (
        shrunk(
            stage,
            backbone=backbone,
            objective=objective,
            data=replace(stage.data, source=Emoji()),
            side=side,
            batch=stage.batch // 128,
        )
        for stage, objective in zip(recipe.stages, objectives, strict=True)
    )
    return Recipe(f"{recipe.name}-debug", tuple(stages))


def imagenet256_debug() -> Recipe:
    """imagenet256's two stages at toy size, in pixels of the packaged emoji: seconds on a CPU."""
    return _debug(imagenet256(), 16, 2, (_MASKED, _WHOLE))


def imagenet256_cosine_debug() -> Recipe:
    """imagenet256-cosine's two stages at toy size, in pixels of the packaged emoji."""
    falling = replace(_MASKED, mask=MaskRatio(0.5, "cosine", power=4, multiple=2))
    return _debug(imagenet256_cosine(), 16, 2, (_MASKED, falling))


def imagenet512_debug() -> Recipe:
    """imagenet512's two stages at toy size, in pixels of the packaged emoji."""
    return _debug(imagenet512(), 32, 4, (replace(_MASKED, patch=(4, 4)), _WHOLE))


EMOJI = MaskDiTConfig(256, 8, 4, (32, 32), 4, channels=3, num_classes=8, decoder=Decoder(112, 2, 4))


def emoji() -> Recipe:
    """All packaged emoji by group, in pixels at 32 px with half of the 64 patches shown, then tuned on all of them:
    ten to fifteen minutes on two CPU cores."""
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
