"""The score of Davidsonian scene graphs, against the reference and the published numbers."""

import json
from pathlib import Path

import pytest

from pixelspace.config import to_data
from pixelspace.errors import DataError
from pixelspace.evaluation.questions.answers import Key, read_answers
from pixelspace.evaluation.questions.dsg import question_scores, score_graphs, zeroed
from pixelspace.evaluation.questions.graphs import Graph, Question, dsg1k

GOLDENS = Path(__file__).parents[2] / "goldens" / "metrics"
DSG = json.loads((GOLDENS / "dsg.json").read_text())
RELEASED = DSG["reference_numbers_on_released_sd21_answers"]


@pytest.mark.parametrize("vqa", RELEASED)
def test_published_numbers_come_out_of_the_released_answers(vqa):
    items, expected = dsg1k(), RELEASED[vqa]
    answers = read_answers(GOLDENS / "dsg" / f"{vqa}.csv.gz", items, "sd2dot1")
    direct = score_graphs(items, answers, vqa=vqa)
    without = score_graphs(items, answers, vqa=vqa, dependencies="none")
    transitive = score_graphs(items, answers, vqa=vqa, dependencies="transitive")
    assert round(100 * direct.score, 2) == expected["all"]
    assert round(100 * without.score, 2) == expected["without_dependency"]
    assert round(100 * transitive.score, 2) == expected["transitive_variant"]
    assert {share.name: round(100 * share.score, 1) for share in direct.by_category} == expected["by_category"]
    assert len(direct.images) == len(direct.values) == expected["n_items"]
    assert direct.missing == ("tifa160_134",)
    assert sorted(direct.malformed) == DSG["items_with_malformed_dependency"]
    assert sum(share.count for share in direct.by_kind) == 8182


@pytest.mark.parametrize("case", DSG["cases"], ids=lambda case: case["name"])
def test_an_item_is_scored_as_the_reference_scores_it(case):
    answers = case["answers"]
    parents = {id: [str(p) for p in of if p] for id, of in (case["dependency"] or {}).items()}
    expected = case["expected"]
    if "error" in expected:
        with pytest.raises(DataError, match="question 3 depends on 2, which has no answer"):
            zeroed(answers, parents)
        return
    count = max(len(answers), 1)
    assert sum(question_scores(answers, parents).values()) / count == expected["with_dependency"]
    assert sum(question_scores(answers, parents, "none").values()) / count == expected["without_dependency"]
    lost = zeroed(answers, parents)
    assert {id: id not in lost for id in expected["validity"]} == expected["validity"]


def test_transitive_zeroing_goes_down_a_chain_and_ends_on_a_cycle():
    chain = {"1": (), "2": ("1",), "3": ("2",), "4": ("3", "4")}
    answers = {"1": "no", "2": "yes", "3": "yes", "4": "yes"}
    assert zeroed(answers, chain) == {"2"}
    assert zeroed(answers, chain, "transitive") == {"2", "3", "4"}
    assert zeroed({**answers, "1": "yes"}, chain, "transitive") == frozenset()


ITEMS = (
    Graph("tifa160_0", "a", (Question("1", "a?", (), "entity"), Question("2", "b?", ("1",), "attribute"))),
    Graph("mine_1", "b", (Question("1", "c?", (), "entity"),), "question 1: '5, right'"),
    Graph("mine_2", "c", (Question("2", "d?", ("1",), "entity"),)),
)


def test_missing_images_count_nothing_and_are_named():
    answers = {Key("tifa160_0", "1", "7"): "yes", Key("tifa160_0", "2", "7"): "No.", Key("mine_1", "1", "8"): "yes"}
    score = score_graphs(ITEMS, answers, vqa="me")
    assert dict(zip(score.images, score.values, strict=True)) == {
        **{"tifa160_0_7": 0.5, "tifa160_0_8": 0, "mine_1_7": 0},
        **{"mine_1_8": 1, "mine_2_7": 0, "mine_2_8": 0},
    }
    assert score.score == pytest.approx(1.5 / 6)
    assert score.missing == ("tifa160_0_8", "mine_1_7", "mine_2_7", "mine_2_8")
    assert [(share.name, share.score, share.count) for share in score.by_category] == [
        ("tifa", 0.25, 2),
        ("mine", 0.25, 4),
    ]
    assert [(share.name, share.score, share.count) for share in score.by_kind] == [
        ("entity", pytest.approx(1 / 3), 6),
        ("attribute", 0, 2),
    ]
    assert (score.vqa, score.other, score.malformed) == ("me", 1, ("mine_1",))
    assert json.loads(json.dumps(to_data(score)))["by_category"][0]["name"] == "tifa"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "there are none to score"),
        ({Key("tifa160_0", "1"): "yes"}, "tifa160_0: 1 of 2 questions have no answer, the first is 2"),
        ({Key("mine_2", "2"): "yes"}, "mine_2: question 2 depends on 1, which has no answer"),
    ],
)
def test_answers_that_are_not_whole_are_refused(answers, message):
    with pytest.raises(DataError, match=message):
        score_graphs(ITEMS, answers, vqa="me")
