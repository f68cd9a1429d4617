"""A small Matryoshka on clips: frames as images, then 16 of them at a time, then larger ones, stage by stage.

As the paper's video model has it (Gu et al. 2024): its levels are 16 large frames, 16 small ones and one small one. It
publishes no network for clips, so sizes here are ours, and so is all that makes them learn on two CPU cores.
"""

from dataclasses import replace

from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig, UNetText
from pixelspace.backbones.unet_body import UNetBody, UNetLevel
from pixelspace.data.clips import Clips
from pixelspace.data.loader import Data
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.noise.weighting import Unit
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.recipes.matryoshka import ROUND, TABLE
from pixelspace.sampling.generate import Sampling
from pixelspace.text.minilm import MiniLM
from pixelspace.training.ema import EMA
from pixelspace.training.optim import AdamW, Constant
from pixelspace.training.stage import Inherit, Recipe, Stage


def _body(*levels: UNetLevel, ffn: bool = False) -> UNetBody:
    return UNetBody(levels, time_width=256, groups=8, heads=4, attention_groups=8, ffn=ffn)


FRAME = UNetConfig(_body(UNetLevel(64, 1), UNetLevel(128, 2, attention=1), ffn=True), text=UNetText(384))
# 16, 8, 4, 2 and 1 frames
TIME = NestedUNetConfig(_body(UNetLevel(32, 1, temporal=1), *[UNetLevel(64, 1)] * 4), FRAME, False, "time", rotary=True)
SPACE = NestedUNetConfig(_body(UNetLevel(24, 1), UNetLevel(48, 1)), TIME, False, "space")


def objective_of(backbone: UNetConfig | NestedUNetConfig) -> NestedDenoising:
    """v-prediction and its plain error, which a short training needs: the noise's hardly asks where things are."""
    pyramid = Pyramid(backbone.pyramid, tiles=backbone.tiles)
    return NestedDenoising(Process(VPV(), clock=TableIndex(TABLE)), TABLE, Unit(), pyramid, drop_rate=0.1)


def clips() -> Recipe:
    """Captioned clips of your own: frames at 16 px, 16 frames of 16 px, 16 of 32 px, every fourth of a file's."""
    batch, frame = 32, Clips("clips", frames=1, max_bad_share=0.2)
    frames = Stage(
        name="frames-16",
        backbone=FRAME,
        objective=objective_of(FRAME),
        # By key, so that no stage is judged by a clip another one was trained on: short ones are in the first alone.
        data=Data(frame, flip=False, holdout=0.05, split="key"),
        size=(16, 16),
        batch=batch,
        images=450 * batch,
        sampling=Sampling("euler_ancestral", steps=50, levels=TABLE, guidance=2.0, threshold="clip"),
        text=MiniLM(length=24),
        optimizer=AdamW(lr=5e-4, betas=(0.9, 0.99), weight_decay=0.0, clip=2.0),
        schedule=Constant(warmup_images=50 * batch),
        ema=EMA(),
        precision="bf16",
        save_images=150 * batch,
        sample_images=450 * batch,
        sample_count=16,
        validate_images=150 * batch,
        validate_count=64,
    )
    moving = replace(frames.data, source=replace(frame, frames=16, stride=4))

    def round_it(before: Stage, name: str, backbone: NestedUNetConfig, side: int, batch: int, steps: int) -> Stage:
        images = steps * batch
        return replace(
            before,
            name=name,
            backbone=backbone,
            objective=objective_of(backbone),
            data=moving,
            size=(side, side),
            batch=batch,
            images=images,
            schedule=Constant(warmup_images=20 * batch),
            init=Inherit(before.name, ROUND),
            save_images=images // 3,
            sample_images=images,
            sample_count=6,
            validate_images=images // 3,
            validate_count=24,
        )

    clips = round_it(frames, "clips-16", TIME, 16, batch=8, steps=900)
    larger = round_it(clips, "clips-32", SPACE, 32, batch=6, steps=900)
    return Recipe("mdm-clips", (frames, clips, larger))
