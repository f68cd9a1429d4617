from pathlib import Path

import pytest

from pixelspace.errors import CheckpointError, UserError
from pixelspace.serving.offer import (
    CHARACTERS,
    CHOICES,
    IMAGES,
    OWN,
    SEEDS,
    STEPS,
    Offer,
    _thinned,
    checkpoints_of,
    wanted,
)


def refused(message: str, offer: Offer | None = None, **asked) -> None:
    with pytest.raises(UserError, match=message) as caught:
        one = wanted({"model": "classes", "seed": 0, **asked})
        if offer is not None:
            offer.of(one).check(one)
    assert "\n" not in str(caught.value)


def accepted(offer: Offer, **asked) -> list[str]:
    one = wanted({"model": "classes", "seed": 0, **asked})
    offer.of(one).check(one)
    return offer.of(one).notes(one)


@pytest.mark.parametrize(("name", "low", "high"), [("n", 1, IMAGES), ("steps", 1, STEPS), ("seed", 0, SEEDS - 1)])
def test_numbers_are_taken_at_their_limits_and_refused_one_beyond(name, low, high):
    for inside in (low, high):
        assert getattr(wanted({"model": "m", "seed": 0, name: inside}), name) == inside
    for outside in (low - 1, high + 1, 10**400):
        refused(rf"{name}: must be from {low:,} to {high:,}, found", **{name: outside})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seed": "-1"}, "seed: must be a number from 0 to"),
        ({"seed": "1" * 30}, "seed: must be a number from 0 to"),
        ({"seed": "³"}, "seed: must be a number from 0 to"),
        ({"seed": 1.5}, "seed"),
        ({"model": 3}, "model"),
        ({"seed": True}, "seed"),
        ({"guidance": -0.1}, "guidance: must be from 0 to 100"),
        ({"guidance": "2"}, "guidance"),
        ({"steps": 2.0}, "steps"),
        ({"n": "4"}, "n: "),
        ({"size": [16]}, "size"),
        ({"size": "16"}, "size"),
        ({"label": [1]}, "label"),
        ({"text": "x" * (CHARACTERS + 1)}, "prompt: 2,001 characters; at most 2,000"),
        ({"negative": "a\0b"}, r"negative prompt: holds the control character U\+0000"),
        ({"text": "\x1b[31m"}, r"prompt: holds the control character U\+001B"),
        ({"path": "/etc/passwd"}, "path: no such setting of Wanted"),
        ({"setps": 3}, "setps: no such setting of Wanted; did you mean 'steps'"),
        ({"text": {"type": "Wanted"}}, "text: expected a plain value, found an object"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(asked, message):
    refused(message, **asked)


def test_a_request_names_its_model_and_gets_a_seed_if_it_has_none():
    with pytest.raises(UserError, match="model: is missing"):
        wanted({"seed": 0})
    assert wanted({"model": "m"}).seed != wanted({"model": "m", "seed": None}).seed


def test_a_seed_may_come_as_a_text_of_digits_since_browsers_round_large_numbers():
    assert wanted({"model": "m", "seed": str(SEEDS - 1)}).seed == SEEDS - 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"model": "../../etc"}, r"model: no such model '\.\./\.\./etc'; known here: classes, clips, lost"),
        ({"size": [17, 16]}, "height 17"),
        ({"size": [0, 16]}, "height 0: this model was trained at"),
        ({"size": [-16, 16]}, "height -16"),
        ({"size": [16, 10**9]}, "width 1000000000: this model was trained at"),
        ({"label": 99}, "label 99 is out of range"),
        ({"label": "cat"}, "label: no class 'cat'"),
        ({"text": "a cat"}, "text: this model reads no text"),
        ({"sampler": "eular"}, "sampler: no solver 'eular'; did you mean 'euler'"),
        ({"model": "text", "text": " \n"}, "text: prompt 1 of 1 is blank"),
        ({"model": "text", "text": "a", "label": 1}, "label: this model has no classes"),
        ({"model": "text", "text": "a", "negative": "b", "guidance": 1}, "negative: without guidance"),
        ({"n": IMAGES, "steps": STEPS}, "16 images of .* in 1,000 steps are 4 times what one request may ask for"),
        ({"model": "lost", "text": "a cat"}, "text encoder is not at hand; the server needs --encoder"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_it_waits(offer, asked, message):
    refused(message, offer, **asked)


def test_as_much_as_the_budget_is_drawn_and_no_more(offer):
    steps = OWN // IMAGES
    assert accepted(offer, n=IMAGES, steps=steps) == []
    refused("times what one request may ask for", offer, n=IMAGES, steps=steps + 1)


def test_a_prompt_that_is_longer_than_the_model_reads_is_said_to_be_cut(offer):
    assert accepted(offer, model="text", text="a") == []
    (note,) = accepted(offer, model="text", text="a cat " * 100)
    length = offer.models["text"].model.config.text.length
    assert note == f"the prompt has 601 tokens, and the model reads the first {length}"


def test_every_side_that_is_offered_can_be_drawn_and_no_other_near_it(offer):
    for one in offer.models.values():
        config = one.model.config
        for axis, sides in enumerate(one.sides):
            assert config.size[axis] in sides
            for side in range(config.size[axis] // 2, 2 * config.size[axis] + 1):
                size = list(config.size)
                size[axis] = side
                assert one._fits(*size) == (side in sides)


def test_long_lists_of_sides_are_thinned_to_round_ones_and_keep_the_models_own():
    sides = _thinned(list(range(500, 2001)), 1001)
    assert len(sides) <= CHOICES and 1001 in sides and 1024 in sides


def test_models_are_named_by_the_end_of_their_path_that_tells_them_apart():
    def opened(*paths: str) -> list[str]:
        return list(Offer.opened([Path(path) for path in paths], lambda path: None).models)  # type: ignore

    assert opened("/home/ann/runs/a") == ["a"]
    assert opened("/x/a/step-1", "/x/b/step-1") == ["a/step-1", "b/step-1"]
    with pytest.raises(UserError, match="named twice"):
        opened("/x/a", "/x/../x/a")
    with pytest.raises(UserError, match="give 1 to 16 models; found 0"):
        opened()


def test_a_folder_without_checkpoints_has_none_to_offer(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        checkpoints_of(tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        checkpoints_of(tmp_path / "none")
