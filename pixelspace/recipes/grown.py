"""Recipes that grow a network out of a trained one: HDiT by an outer level, MaskDiT by a finer grid, and Greedy Growing
on pictures of one's own and on the packaged ones.

Only the last is from a paper (Vasconcelos et al. 2024; see `recipes.greedy`). That the same serves the other two, and
all sizes, steps and rates, are ours.
"""

import math
from dataclasses import replace

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig, UViTConfig
from pixelspace.data.emoji import Emoji
from pixelspace.data.folder import Folder
from pixelspace.data.keep import Keep
from pixelspace.data.loader import Data
from pixelspace.errors import UserError
from pixelspace.growth.transfer import Rule
from pixelspace.nn.text import Text
from pixelspace.noise.levels import CosineInterpolated, LogNormal
from pixelspace.noise.process import EDM, Process
from pixelspace.noise.weighting import SoftMinSNR
from pixelspace.objectives.denoising import Denoising, Objective
from pixelspace.objectives.masked import Masked
from pixelspace.recipes import greedy, hdit, maskdit
from pixelspace.recipes.debug import shrunk
from pixelspace.text.bytes import Bytes
from pixelspace.text.minilm import MiniLM
from pixelspace.training.ema import EMA
from pixelspace.training.optim import AdamW, Constant, Group
from pixelspace.training.stage import Inherit, Recipe, Stage
from pixelspace.types import BackboneConfig


def _parts(config: HDiTConfig) -> list[tuple[str, int]]:
    """What there is of each outer level that holds tensors, with the level's number."""
    return [
        (part, number)
        for number, level in enumerate(config.levels[:-1])
        for part in ("down_levels", "up_levels", "merges", "splits")
        if level.depth or part in ("merges", "splits")
    ]


def _new_levels(trained: HDiTConfig, grown: HDiTConfig) -> int:
    new = len(grown.levels) - len(trained.levels)
    if new < 1 or grown.levels[new:] != trained.levels:
        raise UserError(
            f"an HDiT of {len(grown.levels)} levels is not one of {len(trained.levels)} with others round it: its last "
            f"levels must be {trained.levels}, found {grown.levels[max(new, 0) :]}; see HDiTConfig.levels"
        )
    return new


def outer_levels(trained: HDiTConfig, grown: HDiTConfig) -> tuple[Rule, ...]:
    """The rules by which an HDiT grows out of one that lacks its outermost levels: levels are numbered from the finest,
    so that those it had move inwards; the new ones, patches and the last norm are fresh; all else stays.

    Raises:
        UserError: the levels of `grown` do not end with those of `trained`.
    """
    new = _new_levels(trained, grown)
    fresh = ("patch_in.*", "patch_out.*", "out_norm.*", *(f"{part}.{n}.*" for part, n in _parts(grown) if n < new))
    moved = [(f"{part}.{n}.", f"{part}.{n - new}.") for part, n in _parts(grown) if n >= new]
    return (
        *(Rule(names, fresh=True) for names in fresh),
        *(Rule(f"{here}*", prefix=(here, there)) for here, there in moved),
        Rule("*"),
    )


def inner_levels(trained: HDiTConfig, grown: HDiTConfig) -> tuple[str, ...]:
    """Patterns over all that learns of what `outer_levels` takes over: levels, and what conditions them."""
    new = _new_levels(trained, grown)
    some = {
        "mid_level.*": grown.levels[-1].depth > 0,
        "class_emb.*": grown.num_classes > 0,
        "text_in.*": grown.text is not None,
    }
    moved = (f"{part}.{n}.*" for part, n in _parts(grown) if n >= new)
    return ("mapping.*", "*_in_proj.*", *(names for names, there in some.items() if there), *moved)


def hourglass_at(size: int, reference: int = 64) -> Denoising:
    """HDiT's objective at `reference` px, moved to `size`: levels by the ratio of sizes, so that means over blocks are
    as noisy as pixels were, and the network is asked about the levels it knows."""
    shift = size / reference
    levels = CosineInterpolated(
        image_d=float(size),
        noise_d_low=32.0,
        noise_d_high=float(reference),
        sigma_min=1e-3 * shift,
        sigma_max=1e3 * shift,
    )
    return Denoising(Process(EDM(0.5), shift=shift), levels, SoftMinSNR(4.0))


GROWN128 = replace(hdit.OWN64, levels=(Level(128, 2, Neighborhood()), *hdit.OWN64.levels))


def _hdit_stages(base: Stage, backbone: HDiTConfig, objective: Objective, size: int) -> tuple[Stage, Stage, Stage]:
    """A trained network; levels round it while it is held still; and all of it, at a tenth of the rate."""
    assert isinstance(base.backbone, HDiTConfig)
    batch, kept = base.batch, inner_levels(base.backbone, backbone)
    grown = replace(
        base,
        name=f"grow-{size}",
        backbone=backbone,
        objective=objective,
        size=(size, size),
        images=50_000 * batch,
        init=Inherit(base.name, outer_levels(base.backbone, backbone)),
        freeze=kept,
    )
    released = tuple(Group(names, warmup_images=500 * batch) for names in kept)
    joint = replace(
        grown,
        name=f"joint-{size}",
        images=25_000 * batch,
        init=Inherit(grown.name, weights="raw", ema="carry", optimizer=True),
        freeze=(),
        optimizer=replace(grown.optimizer, lr=grown.optimizer.lr / 10, groups=released),
        schedule=Constant(),
    )
    return base, grown, joint


def hdit_128() -> Recipe:
    """Your own folder of images: an HDiT at 64 px, one level more for 128 px while the inner one is held still, then
    all of it at a tenth of the rate. `--from` a model of hdit-64 and `--stage grow-128` leave the first stage out."""
    base = replace(hdit.own64().stages[0], name="base-64", objective=hourglass_at(64))
    return Recipe("hdit-grown-128", _hdit_stages(base, GROWN128, hourglass_at(128), 128))


# Tables of positions are interpolated for the finer grid; all else does not depend on it.
FINER_GRID = (Rule("pos_embed", resize="position"), Rule("decoder_pos_embed", resize="position"), Rule("*"))


def maskdit_128() -> Recipe:
    """Your own folder of images: a MaskDiT at 64 px, masked; the same on a grid twice as fine for 128 px, all of it
    trained; then tuned on all patches.

    At 128 px the levels are those of 64 px times 2, as larger images are noised. The network is asked about them as
    they are: a patch has as many pixels as before and is as noisy at the same sigma.
    """
    masked, tuned = maskdit.own64().stages
    assert isinstance(masked.objective, Masked) and isinstance(tuned.objective, Denoising)
    levels = LogNormal(-1.2 + math.log(2), 1.2)
    first = replace(masked, name="masked-64")
    finer = replace(
        first,
        name="masked-128",
        backbone=replace(maskdit.OWN64, size=(128, 128)),
        objective=replace(masked.objective, levels=levels),
        size=(128, 128),
        images=50_000 * masked.batch,
        init=Inherit("masked-64", FINER_GRID),
        micro=32,
    )
    whole = replace(
        tuned,
        name="tuned-128",
        backbone=finer.backbone,
        objective=replace(tuned.objective, levels=levels),
        size=(128, 128),
        init=Inherit("masked-128", weights="raw", ema="carry"),
        micro=32,
    )
    return Recipe("maskdit-grown-128", (first, finer, whole))


def _warmed(stage: Stage, steps: int) -> Stage:
    """The stage with as many steps of warm-up for each group of its optimiser that has one."""
    groups = (replace(g, warmup_images=steps * stage.batch if g.warmup_images else 0) for g in stage.optimizer.groups)
    return replace(stage, optimizer=replace(stage.optimizer, groups=tuple(groups)))


def greedy_256() -> Recipe:
    """Your own captioned images, their captions read by MiniLM, on one GPU: a core of size S at 64 px in a
    Shallow-UViT, a UViT round it on the images of 256 px and more while it is held still, then the core, too, at a
    tenth of the rate."""
    own, batch = greedy.core("S", text_width=384), 128
    data = Data(Folder("images"), holdout=0.05, split="key", workers=2)  # held out alike, whatever else is left out
    core = replace(
        greedy.core_stage(own),
        data=data,
        text=MiniLM(),
        batch=batch,
        images=100_000 * batch,
        schedule=Constant(warmup_images=1000 * batch),
        save_images=1000 * batch,
        sample_images=2000 * batch,
        validate_images=1000 * batch,
    )
    grown = replace(
        greedy.grown_stage(core, own, 256),
        data=replace(data, keep=(Keep("side", low=256),)),
        images=50_000 * batch,
        micro=16,
    )
    return Recipe("greedy-256", (core, grown, _warmed(greedy.released(grown, "joint-256", 25_000), 1000)))


EMOJI_CORE = CoreConfig(128, 4, 32, (8, 8), cond_width=256, text=Text(384, 0, inner=128, head_dim=32))


def greedy_emoji() -> Recipe:
    """285 emoji of animals, plants and food by what they are called: a core at 32 px, grown to 64 px, then released."""
    batch = 32
    core = replace(
        greedy.core_stage(greedy.core("XS")),
        name="core-32",
        backbone=ShallowUViTConfig(EMOJI_CORE, stride=4),
        objective=greedy.objective_at(32, reference=32),
        data=Data(Emoji(groups=("animals", "food")), holdout=0.05),
        size=(32, 32),
        batch=batch,
        images=3000 * batch,
        sampling=replace(greedy.sampling_at(32, 2.0, reference=32), steps=50),
        text=MiniLM(length=32),
        optimizer=AdamW(lr=1e-3, betas=(0.9, 0.99)),
        schedule=Constant(warmup_images=100 * batch),
        ema=EMA(power=0.75, max_decay=0.995),
        save_images=500 * batch,
        sample_images=500 * batch,
        validate_images=500 * batch,
    )
    grown = replace(
        core,
        name="grow-64",
        backbone=UViTConfig(EMOJI_CORE, (32, 64), patch=2, seam="affine"),
        objective=greedy.objective_at(64, reference=32),
        size=(64, 64),
        images=2000 * batch,
        sampling=replace(greedy.sampling_at(64, 2.0, reference=32), steps=50),
        init=Inherit("core-32", greedy.GROWN, match_images=256),
        freeze=greedy.KEPT,
    )
    joint = _warmed(greedy.released(grown, "joint-64", 1000), 100)
    return Recipe("greedy-emoji", (core, grown, replace(joint, schedule=Constant(cooldown=0.5))))


def at_toy_size(recipe: Recipe, *small: tuple[BackboneConfig, Objective, int]) -> Recipe:
    """The recipe's stages as they follow each other on the packaged emoji, each with a small network, its objective and
    the side of its images."""
    batch, stages = 4, []
    for stage, (backbone, objective, side) in zip(recipe.stages, small, strict=True):
        data = replace(stage.data, source=Emoji(), keep=())
        toy = shrunk(stage, backbone=backbone, objective=objective, data=data, side=side, batch=batch)
        assert isinstance(toy.schedule, Constant)
        few = toy.init and replace(toy.init, match_images=min(toy.init.match_images, 2 * batch))
        text = toy.text and Bytes(48)
        stages.append(_warmed(replace(toy, schedule=replace(toy.schedule, warmup_images=0), init=few, text=text), 2))
    return Recipe(f"{recipe.name}-debug", tuple(stages))


def hdit_128_debug() -> Recipe:
    """hdit-grown-128 at toy size: 16 px, then 32 px."""
    inner = HDiTConfig((Level(32, 1, Global(16)),), patch=(2, 2), mapping_width=32, mapping_depth=1)
    grown = replace(inner, levels=(Level(16, 1, Neighborhood(16, kernel=3)), *inner.levels))
    moved = (grown, hourglass_at(32, reference=16), 32)
    return at_toy_size(hdit_128(), (inner, hourglass_at(16, reference=16), 16), moved, moved)


def maskdit_128_debug() -> Recipe:
    """maskdit-grown-128 at toy size: 16 px, then 32 px."""
    full = maskdit_128()
    sides = (16, 32, 32)
    small = MaskDiTConfig(32, 2, 4, (16, 16), 4, channels=3, decoder=Decoder(16, 1, 2))
    stages = zip(full.stages, sides, strict=True)
    return at_toy_size(full, *((replace(small, size=(side, side)), stage.objective, side) for stage, side in stages))


def greedy_256_debug() -> Recipe:
    """greedy-256 at toy size, names of emoji as bytes: 8 px, then 32 px."""
    own = CoreConfig(64, 1, 16, (2, 2), cond_width=32, text=Text(256, 0, inner=32, head_dim=16))
    uvit = UViTConfig(own, (16, 16, 16), patch=2, blocks=1, seam="affine")
    grown = (uvit, greedy.objective_at(32, reference=8), 32)
    small = at_toy_size(
        greedy_256(), (ShallowUViTConfig(own, stride=4), greedy.objective_at(8, reference=8), 8), grown, grown
    )
    stages = (replace(stage, sampling=replace(stage.sampling, levels=stage.objective.levels)) for stage in small.stages)
    return Recipe(small.name, tuple(stages))
