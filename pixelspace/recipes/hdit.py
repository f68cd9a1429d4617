"""Recipes of the Hourglass Diffusion Transformer (Crowson et al. 2024), and small ones that any machine trains.

The paper's models are those of its co-author's configurations: 117M (ImageNet-128), 85M (FFHQ-1024) and 557M
(ImageNet-256), the last two with mapping width 256. Images are counted as steps times batch.
"""

from dataclasses import replace

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.data.emoji import Emoji
from pixelspace.data.folder import Folder
from pixelspace.data.loader import Data
from pixelspace.noise.levels import CosineInterpolated, Karras
from pixelspace.noise.process import EDM, Process
from pixelspace.noise.weighting import SoftMinSNR
from pixelspace.objectives.denoising import Denoising
from pixelspace.recipes.debug import shrunk
from pixelspace.sampling.generate import Sampling
from pixelspace.training.ema import EMA
from pixelspace.training.optim import AdamW, Constant
from pixelspace.training.stage import Inherit, Recipe, Stage

IMAGENET128 = HDiTConfig(
    levels=(Level(384, 2, Neighborhood()), Level(768, 11, Global())),
    mapping_width=768,
    mapping_depth=1,
    num_classes=1000,
)
FFHQ1024 = HDiTConfig(
    levels=(
        Level(128, 2, Neighborhood()),
        Level(256, 2, Neighborhood()),
        Level(384, 2, Neighborhood()),
        Level(768, 2, Global()),
        Level(1024, 2, Global(), dropout=0.1),
    ),
)
IMAGENET256 = HDiTConfig(
    levels=(Level(384, 2, Neighborhood()), Level(768, 2, Neighborhood()), Level(1536, 16, Global())),
    num_classes=1000,
)


def objective_at(size: int, drop_rate: float = 0.0) -> Denoising:
    """The paper's objective for images of `size`."""
    levels = CosineInterpolated(image_d=float(size), noise_d_low=32.0, noise_d_high=float(size))
    return Denoising(Process(EDM(0.5)), levels, SoftMinSNR(4.0), drop_rate=drop_rate)


def _sampling(sigma_max: float) -> Sampling:
    return Sampling("dpmpp_3m_sde", steps=50, levels=Karras(0.01, sigma_max))


def _paper(name: str, backbone: HDiTConfig, data: Data, size: int, steps: int, *, sigma_max: float) -> Stage:
    return Stage(
        name=name,
        backbone=backbone,
        objective=objective_at(size, drop_rate=0.1 if backbone.num_classes else 0.0),
        data=data,
        size=(size, size),
        batch=256,
        images=steps * 256,
        sampling=_sampling(sigma_max),
        precision="bf16",
    )


_IMAGENET = Data(Folder("imagenet/train"), workers=8)


def imagenet128() -> Recipe:
    """The paper's ablation E: ImageNet at 128 px, 400k steps at batch 256."""
    return Recipe("hdit-imagenet128", (_paper("train", IMAGENET128, _IMAGENET, 128, 400_000, sigma_max=160.0),))


def ffhq1024() -> Recipe:
    """FFHQ at 1024 px: 1M steps at batch 256, non-leaky augmentation at rate 0.12."""
    data = Data(Folder("ffhq1024"), augment=0.12, workers=8)
    return Recipe("hdit-ffhq1024", (_paper("train", FFHQ1024, data, 1024, 1_000_000, sigma_max=640.0),))


def _with_batch(stage: Stage, name: str, batch: int, steps: int, before: str) -> Stage:
    carried = Inherit(before, weights="raw", ema="carry", optimizer=True)
    return replace(stage, name=name, batch=batch, images=steps * batch, init=carried)


def imagenet256() -> Recipe:
    """ImageNet at 256 px: 2M steps at batch 256, then 50k, 100k and 50k at 512, 1024 and 2048, average and moments
    carried."""
    first = _paper("batch-256", IMAGENET256, _IMAGENET, 256, 2_000_000, sigma_max=160.0)
    return Recipe(
        "hdit-imagenet256",
        (
            first,
            _with_batch(first, "batch-512", 512, 50_000, "batch-256"),
            _with_batch(first, "batch-1024", 1024, 100_000, "batch-512"),
            _with_batch(first, "batch-2048", 2048, 50_000, "batch-1024"),
        ),
    )


def _table8(name: str, patch: int, width: int, depth: int) -> Recipe:
    core = Level(width, depth, Global())
    outer = {
        16: (),
        8: (Level(width // 2, 2, Neighborhood()),),
        4: (Level(width // 4, 2, Neighborhood()), Level(width // 2, 2, Neighborhood())),
    }[patch]
    backbone = HDiTConfig(levels=(*outer, core), patch=(patch, patch), num_classes=1000)
    stage = _paper("train", backbone, _IMAGENET, 256, 1_000_000, sigma_max=160.0)
    return Recipe(name, (replace(stage, sampling=replace(stage.sampling, solver="dpmpp_2m_sde")),))


def table8_p16_s() -> Recipe:
    """Table 8: patch 16, width 1024, depth 8."""
    return _table8("hdit-table8-p16-s", 16, 1024, 8)


def table8_p16_m() -> Recipe:
    """Table 8: patch 16, width 1280, depth 12."""
    return _table8("hdit-table8-p16-m", 16, 1280, 12)


def table8_p16_l() -> Recipe:
    """Table 8: patch 16, width 1536, depth 16."""
    return _table8("hdit-table8-p16-l", 16, 1536, 16)


def table8_p8_s() -> Recipe:
    """Table 8: patch 8, width 1024, depth 8."""
    return _table8("hdit-table8-p8-s", 8, 1024, 8)


def table8_p8_m() -> Recipe:
    """Table 8: patch 8, width 1280, depth 12."""
    return _table8("hdit-table8-p8-m", 8, 1280, 12)


def table8_p8_l() -> Recipe:
    """Table 8: patch 8, width 1536, depth 16."""
    return _table8("hdit-table8-p8-l", 8, 1536, 16)


def table8_p4_s() -> Recipe:
    """Table 8: patch 4, width 1024, depth 8."""
    return _table8("hdit-table8-p4-s", 4, 1024, 8)


def table8_p4_m() -> Recipe:
    """Table 8: patch 4, width 1280, depth 12."""
    return _table8("hdit-table8-p4-m", 4, 1280, 12)


def table8_p4_l() -> Recipe:
    """Table 8: patch 4, width 1536, depth 16."""
    return _table8("hdit-table8-p4-l", 4, 1536, 16)


# Networks for pictures of one's own: levels until the innermost grid is 16 x 16, as the paper has it.
OWN64 = HDiTConfig(levels=(Level(256, 6, Global()),), patch=(4, 4))
OWN256 = HDiTConfig(
    levels=(Level(128, 2, Neighborhood()), Level(256, 2, Neighborhood()), Level(512, 8, Global())), patch=(4, 4)
)


def _own(name: str, backbone: HDiTConfig, size: int, batch: int) -> Recipe:
    stage = _paper("train", backbone, Data(Folder("images"), holdout=0.05, workers=2), size, 1, sigma_max=160.0)
    return Recipe(
        name,
        (
            replace(
                stage,
                batch=batch,
                images=100_000 * batch,
                schedule=Constant(warmup_images=500 * batch),
                save_images=1000 * batch,
                sample_images=2000 * batch,
                validate_images=1000 * batch,
            ),
        ),
    )


def own64() -> Recipe:
    """Your own folder of images at 64 px, on one GPU or, slowly, a laptop."""
    return _own("hdit-64", OWN64, 64, 64)


def own256() -> Recipe:
    """Your own folder of images at 256 px, on one GPU."""
    return _own("hdit-256", OWN256, 256, 32)


def _tiny(backbone: HDiTConfig) -> HDiTConfig:
    kinds = {Neighborhood: Neighborhood(16, kernel=3), Global: Global(16)}
    levels = tuple(
        replace(level, width=32 * (i + 1), depth=1, attention=kinds[type(level.attention)])
        for i, level in enumerate(backbone.levels)
    )
    classes = 8 if backbone.num_classes else 0
    return replace(backbone, levels=levels, patch=(2, 2), mapping_width=32, mapping_depth=1, num_classes=classes)


def _debug(recipe: Recipe, size: int) -> Recipe:
    stages = (
        shrunk(
            stage,
            backbone=_tiny(stage.backbone),  # type: ignore[arg-type]
            objective=objective_at(size, drop_rate=0.1 if stage.backbone.num_classes else 0.0),
            data=replace(stage.data, source=Emoji()),
            side=size,
            batch=stage.batch // 64,
        )
        for stage in recipe.stages
    )
    return Recipe(f"{recipe.name}-debug", tuple(stages))


def imagenet128_debug() -> Recipe:
    """ImageNet-128's row at toy size on the packaged emoji: seconds on a CPU."""
    return _debug(imagenet128(), 16)


def ffhq1024_debug() -> Recipe:
    """FFHQ-1024's row, with its augmentation and five levels, at toy size on the packaged emoji."""
    return _debug(ffhq1024(), 96)


def imagenet256_debug() -> Recipe:
    """ImageNet-256's four stages at toy size on the packaged emoji."""
    return _debug(imagenet256(), 24)


DEMO = HDiTConfig(
    levels=(Level(96, 1, Neighborhood(head_dim=32)), Level(192, 5, Global(head_dim=32))),
    patch=(2, 2),
    mapping_width=128,
    mapping_depth=1,
)


def demo() -> Recipe:
    """167 emoji faces at 32 px: minutes on two CPU cores, and the pictures of the README."""
    batch = 64
    return Recipe(
        "hdit-demo",
        (
            Stage(
                name="train",
                backbone=DEMO,
                objective=objective_at(32),
                data=Data(Emoji(groups=("smileys",)), holdout=0.06),
                size=(32, 32),
                batch=batch,
                images=770 * batch,
                sampling=_sampling(80.0),
                optimizer=AdamW(lr=2e-3),
                schedule=Constant(warmup_images=50 * batch, cooldown=0.4),
                ema=EMA(power=0.75, max_decay=0.99),
                precision="bf16",
                save_images=200 * batch,
                sample_images=200 * batch,
                sample_count=36,
                validate_images=200 * batch,
                log_steps=10,
            ),
        ),
    )


EMOJI64 = HDiTConfig(
    levels=(Level(128, 2, Neighborhood()), Level(256, 6, Global())),
    patch=(2, 2),
    mapping_width=256,
    num_classes=8,
)


def emoji() -> Recipe:
    """All packaged emoji at 64 px by group: an hour of CPU is a start, minutes on a GPU."""
    batch = 64
    stage = demo().stages[0]
    return Recipe(
        "hdit-emoji",
        (
            replace(
                stage,
                backbone=EMOJI64,
                objective=objective_at(64, drop_rate=0.1),
                data=Data(Emoji(), holdout=0.05),
                size=(64, 64),
                images=20_000 * batch,
                sampling=replace(_sampling(80.0), guidance=1.5),
                optimizer=AdamW(lr=5e-4),
                ema=EMA(power=0.75, max_decay=0.999),
                save_images=1000 * batch,
                sample_images=1000 * batch,
                validate_images=1000 * batch,
            ),
        ),
    )
