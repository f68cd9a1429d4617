"""Recipes that put a pyramid round a trained transformer: it is held still while a UNet for larger images learns round
it, then all learns.

No paper has this. It is Matryoshka diffusion (Gu et al. 2024) with HDiT (Crowson et al. 2024) or Greedy Growing's
Shallow-UViT (Vasconcelos et al. 2024) as the innermost network, and the latter's frozen core. The transformer is asked
at its own levels of noise, by its own clock and under its own weights of the loss, as it was alone; noise of the larger
images is shifted by their size, as in the original's networks of two levels. Sizes, steps and rates are ours.
"""

from dataclasses import replace

from pixelspace.backbones.hdit import Global, HDiTConfig, Level
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet_body import UNetBody, UNetLevel
from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig
from pixelspace.data.keep import Keep
from pixelspace.nn.text import Text
from pixelspace.noise.pyramid import Pyramid
from pixelspace.objectives.denoising import Denoising
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.recipes import greedy, hdit
from pixelspace.recipes.grown import at_toy_size, greedy_256, hourglass_at
from pixelspace.recipes.matryoshka import INNER, ROUND
from pixelspace.training.optim import Constant, Group
from pixelspace.training.stage import Inherit, Recipe, Stage
from pixelspace.types import BackboneConfig

NOISE_UNIT = 256.0  # of ln(sigma) / 4, as UViT's


def level_round(inner: BackboneConfig, *levels: UNetLevel, groups: int = 32) -> NestedUNetConfig:
    """One level of a pyramid round a network that is told ln(sigma) / 4."""
    body = UNetBody(levels, channels=inner.channels, noise_unit=NOISE_UNIT, groups=groups)
    return NestedUNetConfig(body, inner, normalise=False)


def objective_round(alone: Denoising, backbone: BackboneConfig) -> NestedDenoising:
    """The objective of a network alone, for a pyramid that it is the innermost network of."""
    pyramid = Pyramid(backbone.pyramid)
    return NestedDenoising(alone.process, alone.levels, alone.weighting, pyramid, drop_rate=alone.drop_rate)


def _stages(base: Stage, backbone: NestedUNetConfig, size: int, steps: tuple[int, int], **changes) -> tuple[Stage, ...]:
    """A trained network; a level round it while it is held still; and all of it, at a tenth of the rate."""
    assert isinstance(base.objective, Denoising)
    batch = base.batch
    grown = replace(
        base,
        name=f"grow-{size}",
        backbone=backbone,
        objective=objective_round(base.objective, backbone),
        size=(size, size),
        images=steps[0] * batch,
        init=Inherit(base.name, ROUND),
        freeze=INNER,
        **changes,
    )
    joint = replace(
        grown,
        name=f"joint-{size}",
        images=steps[1] * batch,
        init=Inherit(grown.name, weights="raw", ema="carry", optimizer=True),
        freeze=(),
        optimizer=replace(
            base.optimizer, lr=base.optimizer.lr / 10, groups=(Group(*INNER, warmup_images=steps[1] // 50 * batch),)
        ),
        schedule=Constant(),
    )
    return base, grown, joint


_FOR_256 = (UNetLevel(32, 2), UNetLevel(64, 2), UNetLevel(128, 1))


def hdit_256() -> Recipe:
    """Your own folder of images, on one GPU: an HDiT at 64 px, a level for 256 px round it on those that are large
    enough while it is held still, then all of it at a tenth of the rate. `--from` a model of hdit-64 and
    `--stage grow-256` leave the first stage out."""
    base = hdit.own64().stages[0]
    base = replace(base, name="base-64", data=replace(base.data, split="key"))
    large = replace(base.data, keep=(Keep("side", low=256),))
    stages = _stages(base, level_round(base.backbone, *_FOR_256), 256, (50_000, 25_000), data=large, micro=16)
    return Recipe("hdit-pyramid-256", stages)


def uvit_256() -> Recipe:
    """Your own captioned images, their captions read by MiniLM, on one GPU: the first stage of greedy-256, a core of
    size S in a Shallow-UViT at 64 px; then, where its second grows a UViT round the core, a level for 256 px round all
    of it."""
    core, grown, _ = greedy_256().stages
    sampling = replace(core.sampling, guidance=grown.sampling.guidance, threshold="clip")
    backbone = level_round(core.backbone, *_FOR_256)
    stages = _stages(core, backbone, 256, (50_000, 25_000), data=grown.data, micro=16, sampling=sampling)
    return Recipe("uvit-pyramid-256", stages)


def emoji() -> Recipe:
    """167 emoji faces: hdit-demo at 32 px, a level for 64 px round it, then all of it."""
    base = replace(hdit.demo().stages[0], name="base-32")
    backbone = level_round(base.backbone, UNetLevel(32, 1), UNetLevel(64, 1))
    base, grown, joint = _stages(base, backbone, 64, (400, 200), schedule=Constant(warmup_images=20 * base.batch))
    return Recipe("pyramid-emoji", (base, grown, replace(joint, schedule=Constant(cooldown=0.5))))


def _debug(recipe: Recipe, inner: BackboneConfig, alone: Denoising, side: int) -> Recipe:
    """The recipe with a small network at `side` px, and levels of 8 channels round it."""
    whole = recipe.stages[1].backbone
    assert isinstance(whole, NestedUNetConfig)
    backbone = level_round(inner, *(UNetLevel(8, 1) for _ in whole.body.levels), groups=4)
    moved = backbone, objective_round(alone, backbone), side * whole.ratio
    return at_toy_size(recipe, (inner, alone, side), moved, moved)


_TOY_HDIT = HDiTConfig((Level(32, 1, Global(16)),), patch=(2, 2), mapping_width=32, mapping_depth=1)


def hdit_256_debug() -> Recipe:
    """hdit-pyramid-256 at toy size: 8 px, then 32 px."""
    return _debug(hdit_256(), _TOY_HDIT, hourglass_at(8, reference=8), 8)


def uvit_256_debug() -> Recipe:
    """uvit-pyramid-256 at toy size, names of emoji as bytes: 8 px, then 32 px."""
    own = CoreConfig(64, 1, 16, (2, 2), cond_width=32, text=Text(256, 0, inner=32, head_dim=16))
    return _debug(uvit_256(), ShallowUViTConfig(own, stride=4), greedy.objective_at(8, reference=8), 8)


def emoji_debug() -> Recipe:
    """pyramid-emoji at toy size: 16 px, then 32 px."""
    return _debug(emoji(), _TOY_HDIT, hourglass_at(16, reference=16), 16)
