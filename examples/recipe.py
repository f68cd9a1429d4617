"""A recipe of your own, in two stages: a transformer learns faces at 16 px, then the same weights go on at 32 px.

pixelspace train examples/recipe.py:faces --out runs/faces     (minutes on two cores)
pixelspace train examples/recipe.py:faces --data ~/pictures --out runs/mine
"""

from dataclasses import replace

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.recipes.hdit import demo, objective_at
from pixelspace.training.stage import Inherit, Recipe

BACKBONE = HDiTConfig(
    levels=(Level(96, 1, Neighborhood(head_dim=32)), Level(192, 3, Global(head_dim=32))),
    patch=(2, 2),
    mapping_width=128,
)


def faces() -> Recipe:
    (stage,) = demo().stages  # data, optimiser, average and sampling of the demo
    small = replace(
        stage, name="small", backbone=BACKBONE, objective=objective_at(16), size=(16, 16), images=300 * stage.batch
    )
    large = replace(
        small,
        name="large",
        objective=objective_at(32),
        size=(32, 32),
        images=500 * stage.batch,
        init=Inherit("small"),  # its averaged weights, by their names
    )
    return Recipe("faces", (small, large))
