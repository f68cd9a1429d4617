"""Recipes of Greedy Growing (Vasconcelos et al. 2024): the core learns at 64 px in a Shallow-UViT, and a UViT grows
round it while it is held still.

The paper gives data, batch, steps, arms and guidance. Sizes, learning rates, schedule, prediction, averaging and text
encoder are not public: those here are ours, after simple diffusion (Hoogeboom et al. 2023), and nothing made with them
reproduces a table of the paper.
"""

import math
from dataclasses import replace

from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig, UViTConfig
from pixelspace.data.emoji import Emoji
from pixelspace.data.keep import Keep
from pixelspace.data.loader import Data
from pixelspace.data.mixture import Mixture, Part
from pixelspace.data.shards import Shards
from pixelspace.growth.transfer import Rule
from pixelspace.nn.text import Text
from pixelspace.noise.levels import Cosine
from pixelspace.noise.process import VPV, Precond, Process
from pixelspace.noise.weighting import SNR
from pixelspace.objectives.denoising import Denoising
from pixelspace.recipes.debug import shrunk
from pixelspace.sampling.generate import Sampling
from pixelspace.text.bytes import Bytes
from pixelspace.text.pretrained import Pretrained
from pixelspace.training.ema import EMA
from pixelspace.training.optim import AdamW, Constant, Group
from pixelspace.training.stage import Inherit, Recipe, Stage

# Width, depth and head width. Ours, from simple diffusion's formulas: the paper's table of sizes is not public.
SIZES = {
    "XS": (512, 8, 64),
    "S": (768, 12, 64),
    "M": (1024, 16, 64),
    "L": (1152, 20, 64),
    "XL": (1536, 24, 64),
    "2B": (2048, 28, 128),
    "4B": (2560, 36, 128),
    "8B": (3072, 48, 128),
}

T5_WIDTH = 4096  # of T5-XXL's tokens, as in simple diffusion

# What growth carries over, and what it builds anew round it.
KEPT = ("core.*", "embed.*")
GROWN = (*map(Rule, KEPT), Rule("*", fresh=True))


def core(name: str, text_width: int = T5_WIDTH) -> CoreConfig:
    """The core of a size XS to 8B, which reads text of some width."""
    width, depth, head_dim = SIZES[name]
    return CoreConfig(width, depth, head_dim, text=Text(text_width, 0, inner=width, head_dim=head_dim))


def shallow_at_64(own: CoreConfig) -> ShallowUViTConfig:
    """The Shallow-UViT in which a core learns at 64 px."""
    return ShallowUViTConfig(own, stride=4)


def uvit_at(size: int, own: CoreConfig) -> UViTConfig:
    """The UViT round a core for images of 256, 512 or 1024 px."""
    widths = (64, 128, 256, 512) if size == 1024 else (128, 256, 512)
    return UViTConfig(own, widths, patch=2 if size == 256 else 4, seam="affine")


def levels_at(size: int, reference: int = 64) -> Cosine:
    """Simple diffusion's cosine schedule for images of `size`, log-SNR from -15 to 15 before it is shifted."""
    shift = size / reference
    return Cosine(sigma_min=math.exp(-7.5) * shift, sigma_max=math.exp(7.5) * shift, shift=shift)


def objective_at(size: int, precond: Precond | None = None, reference: int = 64, drop_rate: float = 0.1) -> Denoising:
    """v-prediction, the squared error of the noise, at the levels of `size`; the core is told those of `reference`."""
    process = Process(precond or VPV(), shift=size / reference)
    return Denoising(process, levels_at(size, reference), SNR(), drop_rate=drop_rate)


def sampling_at(size: int, guidance: float, reference: int = 64) -> Sampling:
    """DDPM's steps over the levels of training."""
    return Sampling("euler_ancestral", steps=250, levels=levels_at(size, reference), guidance=guidance)


BATCH = 256
_STEPS = 2_000_000  # of training at 512 px in every arm (paper); the core's own count is ours
_WARM_STEPS = 500_000  # before the core is let go (paper)
_CC12M = Data(Shards("cc12m"), workers=8)
_LARGE = replace(_CC12M, keep=(Keep("side", low=512),))


def core_stage(own: CoreConfig) -> Stage:
    """The core's own training: a Shallow-UViT at 64 px on all pairs."""
    return Stage(
        name="core-64",
        backbone=shallow_at_64(own),
        objective=objective_at(64),
        data=_CC12M,
        size=(64, 64),
        batch=BATCH,
        images=_STEPS * BATCH,
        sampling=sampling_at(64, 1.75),
        text=Pretrained("google/t5-v1_1-xxl"),
        optimizer=AdamW(lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01),
        schedule=Constant(warmup_images=10_000 * BATCH),
        ema=EMA(power=0.75, max_decay=0.9999),
        precision="bf16",
    )


def grown_stage(core_stage: Stage, own: CoreConfig, size: int = 512) -> Stage:
    """A UViT at `size` round the core, which is held still, on pairs that are large enough."""
    return replace(
        core_stage,
        name=f"grow-{size}",
        backbone=uvit_at(size, own),
        objective=objective_at(size),
        data=_LARGE,
        size=(size, size),
        sampling=sampling_at(size, 4.0),
        init=Inherit("core-64", GROWN, match_images=1024),
        freeze=KEPT,
        micro=32,
    )


def released(grown: Stage, name: str, steps: int) -> Stage:
    """The stage after, in which the core learns too: at a tenth of the rate, warmed up, all else going on."""
    slow = tuple(Group(names, lr_factor=0.1, warmup_images=10_000 * grown.batch) for names in KEPT)
    return replace(
        grown,
        name=name,
        images=steps * grown.batch,
        init=Inherit(grown.name, weights="raw", ema="carry", optimizer=True),
        freeze=(),
        optimizer=replace(grown.optimizer, groups=slow),
        schedule=Constant(),
    )


def step_macs(stage: Stage) -> int:
    """Multiply-accumulates of training on one image: backward passes cost twice a forward one, but frozen weights need
    no gradients of their own, which is half of it (linear maps and convolutions; attention's products are few)."""
    _, height, width = stage.shape
    tokens = stage.text.length if stage.text else 0
    still = stage.backbone.core.macs(tokens) if stage.freeze else 0  # type: ignore[attr-defined]
    return 3 * stage.backbone.macs(height, width, tokens=tokens) - still


def _frozen(own: CoreConfig) -> tuple[Stage, Stage]:
    first = core_stage(own)
    return first, grown_stage(first, own)


_OWN = core("L")  # of about 600M parameters


def cc12m_512() -> Recipe:
    """The paper's arm 3: the core from 64 px, frozen throughout. Its size is ours, not the paper's."""
    return Recipe("greedy-cc12m-512", _frozen(_OWN))


def cc12m_512_unfrozen() -> Recipe:
    """Arm 4: frozen for 500k of 2M steps, then released."""
    first, grown = _frozen(_OWN)
    grown = replace(grown, images=_WARM_STEPS * BATCH)
    return Recipe("greedy-cc12m-512-unfrozen", (first, grown, released(grown, "joint-512", _STEPS - _WARM_STEPS)))


def cc12m_512_joint() -> Recipe:
    """Arm 2: the core from 64 px, everything trained from the first step."""
    first, grown = _frozen(_OWN)
    return Recipe("greedy-cc12m-512-joint", (first, replace(grown, freeze=())))


def scratch(grown: Stage) -> Stage:
    """A grown stage that inherits nothing and trains everything."""
    return replace(grown, init=None, freeze=())


def cc12m_512_scratch() -> Recipe:
    """Arm 1: all layers from scratch on the pairs of 512 px."""
    return Recipe("greedy-cc12m-512-scratch", (scratch(_frozen(_OWN)[1]),))


def random_core(grown: Stage, own: CoreConfig) -> Stage:
    """A grown stage round a core of random maps that is frozen: is it what the core has learnt that helps?"""
    assert isinstance(grown.backbone, UViTConfig)
    drawn = replace(own, identity=False)
    return replace(grown, backbone=replace(grown.backbone, core=drawn), init=None)


def cc12m_512_random() -> Recipe:
    """A control: round a core of random maps, frozen."""
    return Recipe("greedy-cc12m-512-random", (random_core(_frozen(_OWN)[1], _OWN),))


def slow_core(grown: Stage) -> Stage:
    """A grown stage whose core learns at a tenth of the rate from the first step: is freezing better than that?"""
    groups = tuple(Group(names, lr_factor=0.1) for names in KEPT)
    return replace(grown, freeze=(), optimizer=replace(grown.optimizer, groups=groups))


def cc12m_512_slow() -> Recipe:
    """A control: arm 2 with a tenth of the rate in the core."""
    first, grown = _frozen(_OWN)
    return Recipe("greedy-cc12m-512-slow", (first, slow_core(grown)))


def at_equal_cost(stages: tuple[Stage, ...]) -> Stage:
    """The last stage from scratch, for as many steps as cost what all of them cost together."""
    last = scratch(stages[-1])
    steps = round(sum(step_macs(stage) * stage.images for stage in stages) / step_macs(last) / last.batch)
    return replace(last, images=steps * last.batch)


def cc12m_512_flops() -> Recipe:
    """A control: arm 1 for the multiply-accumulates of arm 3 and its core's training."""
    return Recipe("greedy-cc12m-512-flops", (at_equal_cost(_frozen(_OWN)),))


def vermeer_8b() -> Recipe:
    """8 billion parameters: 256 px at batch 2,048 for 2M steps; one level more for 1024 px and 1M steps; then 8k steps
    on a mixture with what people find beautiful. Widths and depth, data, scores, and the slower rate of what was grown
    from, are ours."""
    own, data = core("8B"), Data(Shards("captioned-images"), workers=8)
    base = replace(
        core_stage(own),
        name="base-256",
        backbone=uvit_at(256, own),
        objective=objective_at(256),
        data=replace(data, keep=(Keep("side", low=256),)),
        size=(256, 256),
        batch=2048,
        images=2_000_000 * 2048,
        sampling=sampling_at(256, 4.0),
        micro=8,
        checkpointing=True,
    )
    kept = (*KEPT, "seam.*", "levels.[0-2].*")
    grown = replace(
        base,
        name="grow-1024",
        backbone=uvit_at(1024, own),
        objective=objective_at(1024),
        data=replace(data, keep=(Keep("side", low=1024),)),
        size=(1024, 1024),
        batch=BATCH,
        images=1_000_000 * BATCH,
        sampling=sampling_at(1024, 4.0),
        init=Inherit("base-256", (*map(Rule, kept), Rule("*", fresh=True))),
        optimizer=replace(base.optimizer, groups=tuple(Group(names, lr_factor=0.1) for names in kept)),
    )
    source = data.source
    large = Keep("side", low=1024)
    parts = (Part(source, 0.5, (large,)), Part(source, 0.5, (large, Keep("aesthetic", low=6.0))))
    tuned = replace(
        grown,
        name="aesthetic",
        data=Data(Mixture(parts), workers=8),
        images=8_000 * BATCH,
        init=Inherit("grow-1024", weights="raw", ema="carry", optimizer=True),
        optimizer=replace(base.optimizer, lr=1e-5),
        schedule=Constant(),
    )
    return Recipe("vermeer-8b", (base, grown, tuned))


_TOY = CoreConfig(64, 2, 16, (2, 2), cond_width=64, text=Text(256, 0, inner=64, head_dim=16))


def _debug(recipe: Recipe) -> Recipe:
    """The recipe's stages as they follow each other, on emoji of 8 px and more with their names as bytes."""
    sides = {64: 8, 256: 32, 512: 32, 1024: 64}
    stages = []
    for stage in recipe.stages:
        backbone, side = stage.backbone, sides[stage.size[0]]
        if isinstance(backbone, UViTConfig):
            widths = (16, 16, 16, 32)[-len(backbone.widths) :]
            toy = replace(backbone, core=replace(_TOY, identity=backbone.core.identity), widths=widths, patch=2)
        else:
            toy = ShallowUViTConfig(_TOY, stride=4)
        batch = stage.batch // 64
        groups = tuple(replace(g, warmup_images=g.warmup_images // 10_000 // 64) for g in stage.optimizer.groups)
        small = shrunk(
            stage, backbone=toy, objective=objective_at(side, reference=8), data=Data(Emoji()), side=side, batch=batch
        )
        stages.append(
            replace(
                small,
                text=Bytes(48),
                sampling=replace(small.sampling, levels=levels_at(side, 8)),
                optimizer=replace(stage.optimizer, groups=groups),
                schedule=Constant(),
                init=stage.init and replace(stage.init, match_images=min(stage.init.match_images, 8)),
                checkpointing=False,
            )
        )
    return Recipe(f"{recipe.name}-debug", tuple(stages))


def cc12m_512_debug() -> Recipe:
    """greedy-cc12m-512 at toy size."""
    return _debug(cc12m_512())


def cc12m_512_unfrozen_debug() -> Recipe:
    """greedy-cc12m-512-unfrozen at toy size."""
    return _debug(cc12m_512_unfrozen())


def cc12m_512_joint_debug() -> Recipe:
    """greedy-cc12m-512-joint at toy size."""
    return _debug(cc12m_512_joint())


def cc12m_512_scratch_debug() -> Recipe:
    """greedy-cc12m-512-scratch at toy size."""
    return _debug(cc12m_512_scratch())


def cc12m_512_random_debug() -> Recipe:
    """greedy-cc12m-512-random at toy size."""
    return _debug(cc12m_512_random())


def cc12m_512_slow_debug() -> Recipe:
    """greedy-cc12m-512-slow at toy size."""
    return _debug(cc12m_512_slow())


def cc12m_512_flops_debug() -> Recipe:
    """greedy-cc12m-512-flops at toy size, for as few steps as the others."""
    return _debug(cc12m_512_flops())


def vermeer_8b_debug() -> Recipe:
    """vermeer-8b at toy size: two sizes of a UViT, and a third stage."""
    return _debug(vermeer_8b())
