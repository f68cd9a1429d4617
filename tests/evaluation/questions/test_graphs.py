"""DSG-1k as packaged, its layout, and what language models say about prompts."""

import csv
import gzip
import hashlib
from collections import Counter
from importlib.resources import files

import pytest

from pixelspace.errors import DataError
from pixelspace.evaluation.questions.graphs import (
    COLUMNS,
    Graph,
    Question,
    answerable,
    dsg1k,
    graph,
    parse_dependencies,
    parse_questions,
    parse_tuples,
    read_graphs,
)

SAID = (
    "output: 1 | entity - whole (cat)\n2 | attribute - color (cat, black)",
    "1 | Is there a cat?\n2 | Is the cat black?",
    "output:\n1 | 0\n2 | 1, cat",
)


def test_the_packaged_file_is_the_released_one():
    packed = files("pixelspace.evaluation.questions").joinpath("dsg-1k-anns.csv.gz").read_bytes()
    digest = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    assert digest == "b7ce06ea8a0478ccfd8fba105ecd26d7d301eb99d5c412987546c4cc8e08917a"


def test_dsg1k_has_the_counts_of_its_paper_and_its_known_faults(golden_json):
    items = dsg1k()
    questions = [question for item in items for question in item.questions]
    assert (len(items), len(questions)) == (1060, 8182)
    assert Counter(question.category for question in questions) == {
        **{"entity": 3395, "relation": 2069, "attribute": 1950},
        **{"global": 475, "other": 293},
    }
    assert Counter(item.category for item in items) == {
        **{"tifa": 160, "paragraph": 200, "relation": 100, "count": 100},
        **{"real_user": 200, "pose": 100, "defying": 100, "text": 100},
    }
    malformed = [item for item in items if item.malformed]
    assert sorted(item.id for item in malformed) == golden_json("metrics/dsg")["items_with_malformed_dependency"]
    assert all(not question.parents for item in malformed for question in item.questions)
    assert [item.id for item in items if item.orphaned] == ["tifa160_134"]
    assert len(answerable(items)) == 1059


def test_language_models_are_read_as_the_reference_reads_them(golden_json):
    case = golden_json("metrics/dsg")["llm_output_parsing"]

    def keyed(found):
        return {str(id): text for id, text in found.items()}

    assert keyed(parse_tuples(case["tuple_in"])) == case["tuple_out"]
    assert keyed(parse_questions(case["question_in"])) == case["question_out"]
    assert keyed(parse_dependencies(case["dep_in"])) == case["dep_out"]


def test_an_item_is_made_of_what_a_language_model_says():
    tuples, questions, dependencies = SAID
    made = graph(
        "mine_0", "A black cat", parse_tuples(tuples), parse_questions(questions), parse_dependencies(dependencies)
    )
    assert made.category == "mine"
    assert made.questions == (
        Question("1", "Is there a cat?", (), "entity"),
        Question("2", "Is the cat black?", ("1",), "attribute"),
    )


@pytest.mark.parametrize(
    ("parse", "said", "message"),
    [
        (parse_questions, "Is there a cat?", "expected `id | text`, found 'Is there a cat\\?'"),
        (parse_questions, "1 | Is there a cat?\n1 | Is it black?", "the id 1 stands twice"),
        (parse_tuples, "one | entity - whole (cat)", "expected `id"),
        (parse_dependencies, "2 | background", "expected ids that 2 depends on"),
    ],
)
def test_what_a_language_model_says_in_another_form_is_refused(parse, said, message):
    with pytest.raises(DataError, match=message):
        parse(said)


@pytest.mark.parametrize("dependencies", [{1: [0]}, {1: [0], 2: [3]}])
def test_an_item_whose_parts_disagree_is_refused(dependencies):
    with pytest.raises(DataError, match=r"mine_0: .*ask the language model again"):
        graph("mine_0", "", {1: "entity", 2: "entity"}, {1: "a?", 2: "b?"}, dependencies)


def write(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def test_graphs_are_read_in_the_order_of_their_file(tmp_path):
    path = write(
        tmp_path / "mine.csv",
        ("b_1", "two cats", 1, "0", "entity", "Are there cats?"),
        ("a_1", "a dog", 1, "0", "entity", "Is there a dog?"),
        ("b_1", "two cats", 2, "0, 1", "other", "Are there two?"),
    )
    assert read_graphs(path) == (
        Graph(
            "b_1",
            "two cats",
            (Question("1", "Are there cats?", (), "entity"), Question("2", "Are there two?", ("1",), "other")),
        ),
        Graph("a_1", "a dog", (Question("1", "Is there a dog?", (), "entity"),)),
    )


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (("a", "x", 1, "0", "entity", "?"), "mine.csv:3: a has its question 1 twice"),
        (("a", "y", 2, "0", "entity", "?"), "mine.csv:3: a has another text"),
        (("a", "x", "two", "0", "entity", "?"), "mine.csv:3: expected an item_id and a proposition_id"),
        (("a", "x", 0, "0", "entity", "?"), "mine.csv:3: expected an item_id and a proposition_id"),
        (("a", "x", 2), "mine.csv:3: expected 6 fields"),
    ],
)
def test_faulty_rows_are_named(tmp_path, second, message):
    path = write(tmp_path / "mine.csv", ("a", "x", 1, "0", "entity", "?"), second)
    with pytest.raises(DataError, match=message):
        read_graphs(path)
