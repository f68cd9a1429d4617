"""Counting in images, by answers and by a detector that looks."""

import json

import pytest
import torch

from pixelspace.config import to_data
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.questions.answers import Key, answer_questions
from pixelspace.evaluation.questions.counting import count_objects, score_counts
from pixelspace.evaluation.questions.prompts import CountItem, CountPrompts, CountQuestion
from pixelspace.evaluation.questions.share import Share

CHANNELS = ("red", "green", "blue")


def item(id, kind, *asked):
    questions = (
        CountQuestion(str(i), f"How many {noun} dots are in the image?", noun, count)
        for i, (noun, count) in enumerate(asked, 1)
    )
    return CountItem(id, "", kind, tuple(questions))


PROMPTS = CountPrompts(
    "GeckoNum",
    (item("a", "simple", ("red", 3)), item("b", "pair", ("red", 2), ("blue", 5)), item("c", "simple", ("green", 10))),
    (("part-whole", 4),),
)


def dots(**counts):
    """uint8 (3, 8, 32) with so many dots in each colour."""
    image = torch.zeros(3, 8, 32, dtype=torch.uint8)
    for colour, count in counts.items():
        image[CHANNELS.index(colour), 4, 1 : 2 * count : 2] = 255
    return image


DRAWN = {"a": dots(red=3), "b": dots(red=2, blue=4), "c": dots(green=12)}


def detect(image, noun):
    return int((image[CHANNELS.index(noun)] == 255).sum())


def vqa(image, question):
    """A model that says what it sees in words up to three, and more than ten from eleven on."""
    number = detect(image, question.split()[2])
    return ("None", "One.", "two", "There are THREE")[number] if number < 4 else str(number) if number < 11 else "10+"


@pytest.mark.parametrize("by", ["VQA", "detector"])
def test_counts_are_right_where_an_image_has_the_number_asked_for(tmp_path, by):
    images, path = DRAWN.__getitem__, tmp_path / "a.csv"
    if by == "VQA":
        answers = answer_questions(PROMPTS.items, images, vqa, path)
    else:
        answers = count_objects(PROMPTS.items, images, detect, path)
    score = score_counts(PROMPTS, answers, scorer="dots", by=by)
    assert score.name == f"{by} count accuracy (GeckoNum prompts)"
    assert (score.question_accuracy, score.image_accuracy) == (2 / 4, 1 / 3)
    assert score.mean_absolute_error == (0 + 0 + 1 + (1 if by == "VQA" else 2)) / 4
    assert score.by_type == (Share("simple", 0.5, 2), Share("pair", 0.5, 2))
    assert score.images_by_type == (Share("simple", 0.5, 2), Share("pair", 0.0, 1))
    assert score.by_target == (Share("2", 1.0, 1), Share("3", 1.0, 1), Share("5", 0.0, 1), Share("10", 0.0, 1))
    assert (score.unreadable, score.missing, score.excluded) == (0, (), (("part-whole", 4),))
    assert dict(zip(score.images, score.image_values, strict=True)) == {"a": 1, "b": 0, "c": 0}
    assert dict(zip(score.questions, score.question_values, strict=True)) == {
        **{("a", "1"): 1, ("b", "1"): 1},
        **{("b", "2"): 0, ("c", "1"): 0},
    }
    assert json.loads(json.dumps(to_data(score)))["scorer"] == "dots"


def test_unreadable_answers_are_wrong_and_counted():
    answers = {Key("a", "1"): "a few", Key("b", "1"): "2 or 3", Key("b", "2"): "five"}
    score = score_counts(PROMPTS, answers, scorer="me")
    assert (score.question_accuracy, score.unreadable, score.mean_absolute_error) == (0.25, 2, 0.0)
    assert score.missing == ("c",)
    nothing = score_counts(PROMPTS, {Key("a", "1"): "a few"}, scorer="me")
    assert nothing.mean_absolute_error is None and nothing.missing == ("b", "c")


def test_every_seed_is_an_image():
    answers = {Key("a", "1", seed): str(seen) for seed, seen in (("0", 3), ("1", 3), ("2", 4))}
    score = score_counts(CountPrompts("GeckoNum", PROMPTS.items[:1], ()), answers, scorer="me")
    assert score.images == ("a_0", "a_1", "a_2") and score.image_accuracy == 2 / 3


def test_half_an_image_is_refused():
    with pytest.raises(DataError, match="b: 1 of 2 questions have no answer, the first is 2"):
        score_counts(PROMPTS, {Key("b", "1"): "2"}, scorer="me")


@pytest.mark.parametrize("number", [-1, 2.0, True, "3", None])
def test_a_detector_that_does_not_count_is_refused(tmp_path, number):
    with pytest.raises(UserError, match="detector: expected how many 'red'"):
        count_objects(PROMPTS.items, DRAWN.__getitem__, lambda image, noun: number, tmp_path / "a.csv")
