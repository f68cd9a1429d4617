"""The recipes that pages name, at a size that trains two steps in a second: found as `small.py:NAME`."""

from collections.abc import Callable
from dataclasses import replace

from pixelspace.cli.given import recipe_of
from pixelspace.data.emoji import Emoji
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.nn.text import Text
from pixelspace.objectives.masked import Masked
from pixelspace.recipes import RECIPES
from pixelspace.recipes.maskdit import own_latents256
from pixelspace.text.minilm import MiniLM
from pixelspace.training.stage import Recipe, Stage

OF_CLASSES = ("hdit-emoji", "hdit-imagenet", "maskdit-emoji", "maskdit-imagenet", "mdm-imagenet")
FAMILIES = {  # the first whose start fits, where a recipe has no debug sibling of its own
    "hdit-text": "hdit-text-debug",
    "hdit": "hdit-imagenet128-debug",
    "maskdit": "maskdit-imagenet256-debug",
    "greedy": "greedy-256-debug",
    "mdm": "mdm-256-debug",
}


def _two_steps(stage: Stage) -> Stage:
    batch, data = min(stage.batch, 4), replace(stage.data, workers=0)
    if isinstance(data.source, Emoji) and not stage.backbone.num_classes:  # fewer, where their groups are not learnt
        data = replace(data, source=Emoji(groups=("activities",)))
    return replace(
        stage,
        batch=batch,
        images=2 * batch,
        save_images=2 * batch,
        sample_images=2 * batch,
        sample_count=1,
        validate_images=2 * batch,
        validate_count=2,
        data=data,
        sampling=replace(stage.sampling, steps=2),
    )


def _without_classes(stage: Stage) -> Stage:
    if not stage.backbone.num_classes:
        return stage
    # Both at once, since a rate of dropped labels needs labels.
    return replace(
        stage, backbone=replace(stage.backbone, num_classes=0), objective=replace(stage.objective, drop_rate=0.0)
    )


def _of_words(stage: Stage) -> Stage:
    """With the encoder that the recipes of its kind have."""
    backbone = replace(stage.backbone, text=Text(384, 384, inner=32, head_dim=16))
    return replace(stage, backbone=backbone, text=MiniLM(length=32))


def _on_latents(stage: Stage) -> Stage:
    """Of 32 px by a VAE that halves an image's side, in patches of four places."""
    backbone = replace(stage.backbone, size=(16, 16), patch=4, channels=4)
    objective = replace(stage.objective, patch=(4, 4)) if isinstance(stage.objective, Masked) else stage.objective
    data = replace(own_latents256().stages[0].data, workers=0)
    return replace(stage, backbone=backbone, objective=objective, size=(32, 32), codec=KLVAE(factor=2), data=data)


def small(name: str) -> Recipe:
    """The recipe of that name by its debug sibling, else by that of its family."""
    if name == "hdit-64":  # as it stands inside the pyramid that takes it up
        return Recipe(name, small("hdit-pyramid-256").stages[:1])
    family = next((family for start, family in FAMILIES.items() if name.startswith(start)), "")
    sibling = f"{name}-debug" if f"{name}-debug" in RECIPES else family
    stages = recipe_of(sibling).stages
    if not name.startswith(OF_CLASSES):
        stages = map(_without_classes, stages)
    stages = map(_two_steps, stages)
    if name.startswith("hdit-text"):
        stages = map(_of_words, stages)
    if name == "hdit-demo":  # its page compares with images of its size
        stages = (replace(stage, size=(32, 32)) for stage in stages)
    if "latents" in name:
        stages = map(_on_latents, stages)
    return Recipe(name, tuple(stages))


def __getattr__(name: str) -> Callable[[], Recipe]:
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda: small(name)
