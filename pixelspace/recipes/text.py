"""Recipes of the Hourglass Diffusion Transformer on captions, and small ones that any machine trains.

The paper's networks read classes alone; what they do with text is ours: pooled, it enters the mapping network, and the
tokens of the coarsest level attend to it.
"""

from dataclasses import replace

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.data.emoji import Emoji
from pixelspace.data.loader import Data
from pixelspace.nn.text import Text
from pixelspace.recipes.debug import shrunk
from pixelspace.recipes.hdit import OWN256, demo, objective_at, own256
from pixelspace.text.bytes import Bytes
from pixelspace.text.minilm import MiniLM
from pixelspace.training.stage import Recipe

DEMO = HDiTConfig(
    levels=(Level(96, 1, Neighborhood(head_dim=32)), Level(192, 5, Global(head_dim=32), cross=True)),
    patch=(2, 2),
    mapping_width=128,
    mapping_depth=1,
    text=Text(384, 384, inner=192, head_dim=32),
)


def text_demo() -> Recipe:
    """285 emoji of animals, plants and food at 32 px by what they are called: twenty minutes on two CPU cores."""
    (stage,) = demo().stages
    batch = stage.batch
    return Recipe(
        "hdit-text-demo",
        (
            replace(
                stage,
                backbone=DEMO,
                objective=objective_at(32, drop_rate=0.1),
                data=Data(Emoji(groups=("animals", "food")), holdout=0.05),
                text=MiniLM(length=32),
                images=2000 * batch,
                sampling=replace(stage.sampling, guidance=2.0),
                save_images=500 * batch,
                sample_images=500 * batch,
                validate_images=500 * batch,
            ),
        ),
    )


OWN_TEXT256 = replace(
    OWN256, levels=(*OWN256.levels[:-1], replace(OWN256.levels[-1], cross=True)), text=Text(384, 384, inner=512)
)


def own_text256() -> Recipe:
    """Your own captioned images at 256 px, their captions read by MiniLM, on one GPU."""
    (stage,) = own256().stages
    return Recipe(
        "hdit-text-256",
        (
            replace(
                stage,
                backbone=OWN_TEXT256,
                objective=objective_at(256, drop_rate=0.1),
                text=MiniLM(),
                sampling=replace(stage.sampling, guidance=3.0),
            ),
        ),
    )


def text_debug() -> Recipe:
    """Text as bytes that a layer of the network's own reads, at toy size on the packaged emoji: seconds on a CPU."""
    (stage,) = text_demo().stages
    backbone = HDiTConfig(
        levels=(Level(32, 1, Neighborhood(16, kernel=3)), Level(64, 1, Global(16), cross=True)),
        patch=(2, 2),
        mapping_width=32,
        mapping_depth=1,
        text=Text(256, 256, inner=32, depth=1, head_dim=16),
    )
    objective = objective_at(16, drop_rate=0.1)
    small = shrunk(stage, backbone=backbone, objective=objective, data=Data(Emoji()), side=16, batch=4)
    return Recipe("hdit-text-debug", (replace(small, text=Bytes(48)),))
