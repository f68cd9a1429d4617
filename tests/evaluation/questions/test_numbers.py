"""Numbers in answers."""

import pytest

from pixelspace.evaluation.questions.numbers import NUMBERS, WORDS, parse_count, plural


@pytest.mark.parametrize(("number", "word"), tuple(enumerate(WORDS)))
def test_digits_and_words_are_the_same_number(number, word):
    assert parse_count(str(number)) == parse_count(word) == parse_count(f"There are {word.upper()} of them.") == number


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3", 3),
        (" There are 3 dogs. ", 3),
        ("three (3)", 3),
        ("3 birds above a table", 3),
        ("a dozen", 12),
        ("no", 0),
        ("There are no cats in the image", 0),
        ("none", 0),
        ("more than 10", 11),
        ("over ten dogs", 11),
        ("10+", 11),
        ("137", 137),
    ],
)
def test_an_answer_with_one_number_means_it(answer, number):
    assert parse_count(answer) == number


@pytest.mark.parametrize(
    "answer",
    [
        *("", "many", "yes", "2 or 3", "2-3", "-3", "2.5", "1/2", "half a dozen", "two dozen", "dozens", "one hundred"),
        *("at least 3", "up to 4", "more than 5", "over 5 dogs", "5+", "10 or more", "1,000", "no one", "12345678901"),
    ],
)
def test_other_answers_mean_no_number(answer):
    assert parse_count(answer) is None


@pytest.mark.parametrize(
    ("one", "many"),
    [
        *(("dog", "dogs"), ("fish", "fish"), ("black fly", "black flies"), ("leaf", "leaves"), ("couch", "couches")),
        *(("cinnamon stick", "cinnamon sticks"), ("key", "keys"), ("goldfish bowl", "goldfish bowls")),
    ],
)
def test_nouns_are_asked_for_in_the_plural(one, many):
    assert plural(one) == many


def test_words_count_up_from_zero():
    assert [NUMBERS[word] for word in WORDS] == list(range(21))
