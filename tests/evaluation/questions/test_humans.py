"""People's counts, in the layout of GeckoNum's task 1, and a scorer held against them."""

import json

import pytest

from pixelspace.config import to_data
from pixelspace.errors import DataError
from pixelspace.evaluation.questions.answers import Key
from pixelspace.evaluation.questions.humans import (
    HumanCount,
    calibration,
    cohens_kappa,
    human_accuracy,
    parse_vote,
    read_human_counts,
)
from pixelspace.evaluation.questions.prompts import CountItem, CountQuestion

HEADER = "image_id,model,question_id,question,prompt,annot_id,raw_answer,answer\n"
ITEMS = (
    CountItem("g_0", "", "simple", (CountQuestion("1", "How many otters are in the image?", "otter", 3),)),
    CountItem(
        "g_1",
        "",
        "colour",
        (
            CountQuestion("1", "How many red flies are in the image?", "red fly", 2),
            CountQuestion("2", "How many blue flies are in the image?", "blue fly", 4),
        ),
    ),
)


def rows(image, question, *answers, model="m"):
    return "".join(f'{image},{model},0,{question},p,{i},x,"{answer}"\n' for i, answer in enumerate(answers))


@pytest.fixture
def read(tmp_path):
    def written(*parts):
        (tmp_path / "task_1_m.csv").write_text(HEADER + "".join(parts))
        return read_human_counts(tmp_path / "task_1_m.csv")

    return written


@pytest.mark.parametrize(
    ("answer", "vote"),
    [("0", 0), ("3", 3), ("3.0", 3), ("11", 11), ("10+", 11), ("250", 11), (">10", 11)]
    + [(answer, None) for answer in ("2.5", "4-5", "1,10+", "", "x", "-1")],
)
def test_a_vote_is_one_whole_number(answer, vote):
    assert parse_vote(answer) == vote


@pytest.mark.parametrize(
    ("votes", "majority"),
    [((3, 3, 3, 4, 4), 3), ((3, 3, 4, 4), None), ((3, 3, None, None, 5), None), ((None, None, 3), None), ((11,), 11)],
)
def test_a_majority_is_more_than_half_of_all_annotators(votes, majority):
    assert HumanCount("g_0", "?", votes).majority == majority


OTTERS, RED, BLUE = (f"How many {noun} are in the image?" for noun in ("otters", "red flies", "blue flies"))


def annotations(read):
    return read(
        rows("g_0_0", OTTERS, 3, 3, 3, 4, 4),  # right
        rows("g_0_1", OTTERS, 3, 3, "3-4", 4, 4),  # no majority
        rows("g_0_2", OTTERS, "10+", 11, 12, 3, 3),  # more than ten
        rows("g_1_0", "How many flies are in the image?", 6, 6, 6),  # whatever their colour
        rows("g_1_0", RED, 2, 2, 2) + rows("g_1_0", BLUE, 4, 4, 4),
        rows("g_1_1", RED, 2, 2, 2) + rows("g_1_1", BLUE, 5, 5, 4),
        rows("g_1_2", RED, 2, 2, 2),  # blue ones were not counted
        rows("g_7_0", OTTERS, 1, 1, 1),  # no such prompt
    )


def test_people_are_right_by_strict_majority(read):
    score = human_accuracy(ITEMS, annotations(read))
    assert (score.questions, score.images, score.other, score.incomplete) == (8, 5, 2, ("g_1_2",))
    assert score.question_accuracy == 5 / 8
    assert score.image_accuracy == 2 / 5
    assert json.loads(json.dumps(to_data(score)))["other"] == 2


def test_a_scorer_is_held_against_the_majority(read):
    answers = {
        Key("g_0", "1", "0"): "three",  # agrees
        Key("g_0", "1", "1"): "3",  # people are undecided
        Key("g_0", "1", "2"): "20",  # agrees: both more than ten
        Key("g_1", "1", "0"): "2",  # agrees
        Key("g_1", "2", "0"): "3",  # people: 4
        Key("g_1", "1", "1"): "some",  # people: 2
        Key("g_1", "2", "1"): "5",  # agrees
        Key("g_1", "1", "9"): "2",  # nobody counted
    }
    found = calibration(ITEMS, answers, annotations(read))
    assert (found.count, found.undecided, found.unanswered, found.uncounted) == (6, 1, 1, 1)
    assert found.confusion == ((2, -1, 1), (2, 2, 1), (3, 3, 1), (4, 3, 1), (5, 5, 1), (11, 11, 1))
    assert found.agreement == 4 / 6
    # By hand: p_e = (2*1 + 1*2 + 1*0 + 1*1 + 1*1) / 36 over the labels 2, 3, 4, 5, 11.
    assert found.kappa == pytest.approx((4 / 6 - 6 / 36) / (1 - 6 / 36))


@pytest.mark.parametrize(
    ("pairs", "kappa"),
    [
        ({(0, 0): 20, (0, 1): 5, (1, 0): 10, (1, 1): 15}, 0.4),  # p_o 0.7, p_e 0.5
        ({(0, 0): 3, (1, 1): 9}, 1.0),
        ({(0, 1): 1, (1, 0): 1}, -1.0),
        ({(0, 0): 4, (0, 1): 4, (1, 0): 4, (1, 1): 4}, 0.0),
        ({(2, 2): 7}, None),
    ],
)
def test_kappa_is_agreement_beyond_chance(pairs, kappa):
    assert cohens_kappa(pairs) == (None if kappa is None else pytest.approx(kappa, abs=1e-15))


def test_faulty_annotations_are_named(read):
    with pytest.raises(DataError, match=r"task_1_m\.csv:3: annotator 0 answers .* on g_0_0 twice"):
        read(rows("g_0_0", OTTERS, 3), rows("g_0_0", OTTERS, 3))
    with pytest.raises(DataError, match=r"task_1_m\.csv:3: images of n after those of m"):
        read(rows("g_0_0", OTTERS, 3), rows("g_0_1", OTTERS, 3, model="n"))
    with pytest.raises(DataError, match="no annotations"):
        read()


def test_annotations_of_other_prompts_are_refused(read):
    human = read(rows("g_7_0", OTTERS, 3))
    with pytest.raises(DataError, match="none of 1 is about a noun of these prompts"):
        human_accuracy(ITEMS, human)
    with pytest.raises(DataError, match="no question has both"):
        calibration(ITEMS, {}, read(rows("g_0_0", OTTERS, 3)))
