"""What tests of the page that draws share: small models, and the page over a real socket."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pixelspace.api import open_model
from pixelspace.cli.given import recipe_of
from pixelspace.model import Model
from pixelspace.model_config import ModelConfig
from pixelspace.serving.drawer import page
from pixelspace.serving.offer import Offer
from tests.conftest import GOLDENS
from tests.serving.served import serving

WEIGHTS = GOLDENS / "hdit/nbhd_class_2lvl.weights.safetensors"


def untrained(recipe: str) -> Model:
    """The model of a recipe's last stage before any training."""
    stage = recipe_of(recipe).stages[-1]
    return Model(ModelConfig.of(stage), stage.backbone.build().state_dict(), "cpu")


@pytest.fixture(scope="session")
def offer() -> Offer:
    """A model with classes, one of text, one of a pyramid, one of clips; and one whose text encoder is nowhere."""
    texts = untrained("hdit-text-debug")
    clips = untrained("mdm-webvid-debug")
    lost = untrained("hdit-text-debug")
    absent = recipe_of("mdm-cc12m").stages[0].text
    assert absent is not None
    lost.config = replace(lost.config, text=absent)
    pyramid = untrained("pyramid-emoji-debug")
    classes = open_model(WEIGHTS, "cpu")
    return Offer({"classes": classes, "text": texts, "pyramid": pyramid, "clips": clips, "lost": lost})


@pytest.fixture(scope="module")
def drawer_port(offer) -> Iterator[int]:
    """The port of the page, on which a drawing may take 60 seconds."""
    with serving(page(offer, 60)) as port:
        yield port
