"""Asking about images, breaking off, going on, and the file between."""

import csv

import pytest
import torch
from PIL import Image

from pixelspace.errors import DataError, ResourceError
from pixelspace.evaluation.questions.answers import (
    Key,
    answer_questions,
    append_answers,
    find_images,
    read_answers,
)
from pixelspace.evaluation.questions.graphs import Graph, Question

COLOURS = ("red", "green", "blue")
ITEMS = tuple(
    Graph(f"square_{i}", colour, tuple(Question(str(n), f"Is it {c}?") for n, c in enumerate(COLOURS, 1)))
    for i, colour in enumerate(COLOURS)
)
HEADER = "item_id,question_id,question,answer\n"


def is_it(image, question):
    """A model that sees colours."""
    assert image.dtype == torch.uint8 and image.shape == (3, 8, 8)
    seen = COLOURS[int(image.float().mean((1, 2)).argmax())]
    return " Yes\n" if seen in question else "NO"


@pytest.fixture
def folder(tmp_path):
    for item in ITEMS:
        Image.new("RGB", (8, 8), item.prompt).save(tmp_path / f"{item.id}.png")
    return tmp_path


def test_every_question_is_asked_once_and_answers_are_lowered_and_stripped(folder):
    heard = []
    answers = answer_questions(
        ITEMS, find_images(folder, ITEMS), is_it, folder / "a.csv", lambda done, of: heard.append((done, of))
    )
    assert answers == {
        Key(item.id, question.id): "yes" if item.prompt in question.text else "no"
        for item in ITEMS
        for question in item.questions
    }
    assert heard == [(n, 9) for n in range(1, 10)]
    assert read_answers(folder / "a.csv", ITEMS) == answers


@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_a_run_that_breaks_off_goes_on_where_it_was(folder, after):
    images, path, asked = find_images(folder, ITEMS), folder / "a.csv", []

    def breaks(image, question):
        if len(asked) == after:
            raise KeyboardInterrupt
        asked.append(question)
        return is_it(image, question)

    with pytest.raises(KeyboardInterrupt):
        answer_questions(ITEMS, images, breaks, path)
    assert len(read_answers(path, ITEMS)) == after
    again = []
    answers = answer_questions(ITEMS, images, lambda image, q: (again.append(q), is_it(image, q))[1], path)
    assert len(again) == 9 - after
    whole = answer_questions(ITEMS, images, is_it, folder / "b.csv")
    assert answers == whole and path.read_bytes() == (folder / "b.csv").read_bytes()


def test_finished_images_are_not_read_again(folder):
    images, path = find_images(folder, ITEMS), folder / "a.csv"
    first = answer_questions(ITEMS[:1], images, is_it, path)
    images["square_0"].unlink()
    assert answer_questions(ITEMS, images, is_it, path).items() > first.items()


def test_several_images_of_a_prompt_are_told_apart_by_seed(folder):
    def drawn(name):
        return torch.full((3, 8, 8), 255, dtype=torch.uint8) * (torch.arange(3) == int(name[-1]))[:, None, None]

    answers = answer_questions(ITEMS[:1], drawn, is_it, folder / "a.csv", seeds=("0", "2"))
    assert answers[Key("square_0", "1", "0")] == answers[Key("square_0", "3", "2")] == "yes"
    assert list(answers.values()).count("yes") == 2
    assert read_answers(folder / "a.csv", ITEMS) == answers


def test_answers_of_many_lines_and_quotes_come_back(tmp_path):
    said = 'no, "two"\nlines\r and é'
    append_answers(tmp_path / "a.csv", [(Key("square_0", "1"), "Is it red?", said)])
    assert read_answers(tmp_path / "a.csv", ITEMS) == {Key("square_0", "1"): said}


def test_missing_images_are_named_before_anything_is_asked(folder):
    (folder / "square_1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images are missing: square_1\.png"):
        find_images(folder, ITEMS)
    with pytest.raises(DataError, match="2 that have questions are missing: square_1, square_2"):
        answer_questions(ITEMS, {"square_0": folder / "square_0.png"}, is_it, folder / "a.csv")
    assert not (folder / "a.csv").exists()


def test_a_damaged_image_is_named(folder):
    (folder / "square_1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"square_1\.png: not a JPEG"):
        answer_questions(ITEMS, find_images(folder, ITEMS), is_it, folder / "a.csv")
    assert len(read_answers(folder / "a.csv", ITEMS)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "square_9,1,Is it red?,no\n", "a.csv:2: no item 'square_9'"),
        (HEADER + "square_0,9,Is it red?,no\n", "a.csv:2: square_0 has no question '9'"),
        (HEADER + "square_0,1,Is it mauve?,no\n", "a.csv:2: square_0, question 1: 'Is it mauve\\?' was asked, not"),
        (HEADER + 2 * "square_0,1,Is it red?,no\n", "a.csv:3: square_0, question 1 is answered twice: the same"),
        (
            HEADER + "square_0,1,Is it red?,no\nsquare_0,1,Is it red?,yes\n",
            "a.csv:3: square_0, question 1 is answered twice: 'no' before, 'yes' here",
        ),
        (HEADER + "square_0,1,Is it red?,n", "a.csv: the last line does not end"),
        (HEADER + "square_0,1,Is it red?\n", "a.csv:2: expected 4 fields"),
        (HEADER + 'square_0,1,Is it red?,"n', r"a\.csv:2: not CSV"),
        ("item_id,answer\n", "a.csv:1: expected the columns item_id,question_id,question,answer; found item_id,answer"),
        ("", "a.csv:1: .*found nothing"),
    ],
)
def test_faulty_answers_are_named(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(path, ITEMS)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read: No such file"):
        read_answers(tmp_path / "gone.csv", ITEMS)
    (tmp_path / "a.csv.gz").write_bytes(b"\x1f\x8b\x08\0")
    with pytest.raises(DataError, match=r"a\.csv\.gz: cannot be read: "):
        read_answers(tmp_path / "a.csv.gz", ITEMS)
    (tmp_path / "b.csv").write_bytes(b"item_id\xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 7"):
        read_answers(tmp_path / "b.csv", ITEMS)


def test_one_generator_of_a_released_file_is_picked(tmp_path):
    path = tmp_path / "released.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("t2i_model", "item_id", "question", "question_id", "dependency_id", "answer"))
        rows.writerow(("sd1dot5", "square_0", "Is it red?", 1, 0, "no"))
        rows.writerow(("sd2dot1", "square_0", "Is it red?", 1, 0, "yes"))
    assert read_answers(path, ITEMS, "sd2dot1") == {Key("square_0", "1"): "yes"}
    with pytest.raises(DataError, match="answers about sd1dot5, sd2dot1; say which generator"):
        read_answers(path, ITEMS)
    with pytest.raises(DataError, match="no answers about the generator 'sd2'; did you mean 'sd2dot1'"):
        read_answers(path, ITEMS, "sd2")
    with pytest.raises(DataError, match="not added to a file with the columns t2i_model"):
        append_answers(path, [(Key("square_0", "2"), "Is it green?", "no")])


def test_a_file_of_four_columns_goes_on_but_not_with_seeds(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(HEADER)
    append_answers(path, [(Key("square_0", "1"), "Is it red?", "yes")])
    assert path.read_text() == HEADER + "square_0,1,Is it red?,yes\n"
    with pytest.raises(DataError, match="has no column seed"):
        append_answers(path, [(Key("square_0", "1", "3"), "Is it red?", "yes")])


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ResourceError, match=r"gone/a\.csv: cannot be written: No such file"):
        append_answers(tmp_path / "gone" / "a.csv", [])
