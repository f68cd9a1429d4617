"""Votes from CSV files to wins, intervals, tests and agreement: closed forms, published numbers, mirror symmetry."""

import dataclasses
import json
import math
import random
from fractions import Fraction
from pathlib import Path

import pytest

from pixelspace.config import to_data
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.intervals import wilson
from pixelspace.evaluation.preference import Key, Pair
from pixelspace.evaluation.votes import Tally, fleiss_kappa, majority, read_votes, sign_test, summarise

PAGE = "0123456789ab"
SWAPPED = (False, True, True, False, True)
KEY = Key(PAGE, "Which?", 0, "ours", "base|line", tuple(Pair(f"{i}", swap) for i, swap in enumerate(SWAPPED)))


def saved(tmp_path: Path, key: Key = KEY) -> Path:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(to_data(key)))
    return path


def csv(tmp_path: Path, name: str, *rows: str, header: str = "pair,choice,milliseconds,judge") -> Path:
    path = tmp_path / name
    path.write_bytes("\r\n".join([header, *rows, ""]).encode())
    return path


def votes_of(judge: str, *choices: str) -> list[str]:
    return [f"{PAGE}-{i:04d},{choice},{1000 * i},{judge}" for i, choice in enumerate(choices, 1)]


@pytest.fixture
def study(tmp_path):
    a = csv(tmp_path, "a.csv", *votes_of("Ann", "left", "right", "tie", "left", "left"))
    b = csv(tmp_path, "b.csv", *votes_of("Zoë", "left", "left", "right", "tie"))
    return [a, b], saved(tmp_path)


def test_votes_are_for_the_side_that_was_really_there(study):
    votes = read_votes(*study).votes
    assert [vote.winner for vote in votes] == [1, 1, 0, 1, -1, 1, -1, 1, 0]
    assert [vote.seen for vote in votes] == [1, -1, 0, 1, 1, 1, 1, -1, 0]
    assert [vote.pair for vote in votes] == ["0", "1", "2", "3", "4", "0", "1", "2", "3"]
    assert {vote.judge for vote in votes} == {"Ann", "Zoë"}


def test_a_study_counts_votes_and_majorities(study):
    result = summarise(read_votes(*study))
    assert result.votes == Tally(wins=5, losses=2, ties=2)
    assert result.majority == Tally(wins=1, losses=1, ties=3)
    assert result.screen == Tally(wins=5, losses=2, ties=2)
    assert (result.pairs, result.judges, result.seconds) == (5, ("Ann", "Zoë"), 3.0)


def test_the_table_says_what_the_numbers_are(study):
    table = summarise(read_votes(*study)).markdown()
    assert "**ours** (left) against **base\\|line** (right): Which?" in table
    assert "| votes of 2 judges | 5 (55.6%) | 2 (22.2%) | 2 (22.2%) | 66.7% [" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}


def test_exchanging_the_sides_mirrors_every_number(study):
    csvs, path = study
    result = summarise(read_votes(csvs, path))
    pairs = tuple(dataclasses.replace(pair, swapped=not pair.swapped) for pair in KEY.pairs)
    path.write_text(json.dumps(to_data(dataclasses.replace(KEY, left=KEY.right, right=KEY.left, pairs=pairs))))
    turned = summarise(read_votes(csvs, path))
    for one, other in ((result.votes, turned.votes), (result.majority, turned.majority)):
        assert (one.wins, one.losses, one.ties) == (other.losses, other.wins, other.ties)
        assert one.p_value == other.p_value
        low, high = one.interval()
        assert other.interval() == pytest.approx((1 - high, 1 - low), abs=1e-15)
    assert turned.kappa == pytest.approx(result.kappa, abs=1e-15)
    assert turned.screen == result.screen


def test_neither_the_order_of_files_nor_of_rows_matters(study, tmp_path):
    csvs, path = study
    shuffled = [csv(tmp_path, f"{one.name}.turned", *one.read_text("utf-8").split("\n")[:0:-1]) for one in csvs]
    for one in shuffled:
        one.write_text("\n".join(line for line in one.read_text("utf-8").splitlines() if line), "utf-8")
    assert summarise(read_votes(shuffled[::-1], path)) == summarise(read_votes(csvs, path))


def test_a_file_that_a_spreadsheet_saved_again_is_read(tmp_path):
    path = csv(tmp_path, "a.csv", f'"Doe, J",{PAGE}-0001,12,left', header="\ufeffjudge,pair,milliseconds,choice")
    [vote] = read_votes([path], saved(tmp_path)).votes
    assert (vote.judge, vote.winner, vote.milliseconds) == ("Doe, J", 1, 12)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"{PAGE}-0006,left,1,Bo", rf"a.csv:3: no pair '{PAGE}-0006'; the page has 5"),
        ("ba9876543210-0001,left,1,Bo", rf"a.csv:3: pair 'ba9876543210-0001' is of another page; .* of page {PAGE}"),
        (f"{PAGE}-0001,tie,1,Bo", rf"a.csv:3: Bo judged {PAGE}-0001 already, at .*a.csv:2"),
        (f"{PAGE}-0002,both,1,Bo", "a.csv:3: choice 'both'; expected left, tie, right"),
        (f"{PAGE}-0002,left,-1,Bo", "a.csv:3: milliseconds '-1'"),
        (f"{PAGE}-0002,left,1.5,Bo", "a.csv:3: milliseconds '1.5'"),
        (f"{PAGE}-0002,left,1, ", "a.csv:3: no judge"),
        (f"{PAGE}-0002,left,1", "a.csv:3: expected 4 fields"),
        (f"{PAGE}-0002,left,1,Bo,more", "a.csv:3: expected 4 fields"),
        (f'{PAGE}-0002,left,1,"Bo', "a.csv:3: not CSV"),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_its_line(tmp_path, row, message):
    path = csv(tmp_path, "a.csv", f"{PAGE}-0001,left,1,Bo", row)
    with pytest.raises(DataError, match=message):
        read_votes([path], saved(tmp_path))


def test_files_that_hold_no_votes_are_refused(tmp_path):
    key = saved(tmp_path)
    with pytest.raises(DataError, match="no votes"):
        read_votes([csv(tmp_path, "a.csv")], key)
    with pytest.raises(DataError, match="no files: no votes"):
        read_votes([], key)
    with pytest.raises(DataError, match=r"b.csv:1: expected the columns .* found pair;choice"):
        read_votes([csv(tmp_path, "b.csv", header="pair;choice;milliseconds;judge")], key)
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read"):
        read_votes([tmp_path / "absent.csv"], key)
    (tmp_path / "c.csv").write_bytes(b"pair,choice,milliseconds,judge\n\xff")
    with pytest.raises(DataError, match="not UTF-8 at byte"):
        read_votes([tmp_path / "c.csv"], key)


@pytest.mark.parametrize("text", ["[]", "{}", '{"type": "Key", "page": "x"}', '{"type": "Pair"}', "nothing"])
def test_a_file_that_is_no_key_is_refused_by_name(study, text):
    csvs, path = study
    path.write_text(text)
    with pytest.raises(UserError, match=r"key\.json"):
        read_votes(csvs, path)


def test_a_confidence_that_is_none_is_refused():
    with pytest.raises(UserError, match="level"):
        Tally(1, 2, 3).interval(95)


def test_the_sign_test_is_the_sum_of_the_binomial_tails():
    for wins in range(9):
        for losses in range(9):
            n = wins + losses
            tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(n + 1) if abs(2 * k - n) >= abs(wins - losses))
            assert sign_test(wins, losses) == pytest.approx(float(tail), rel=1e-15)


def test_the_sign_test_holds_far_beyond_floating_point_factorials():
    n, excess = 40_000, 400
    normal = math.erfc((excess - 0.5) / math.sqrt(n / 2))  # with the correction for continuity
    assert sign_test(n // 2 + excess, n // 2 - excess) == pytest.approx(normal, rel=1e-3)
    assert sign_test(5, 0) == 0.0625 and sign_test(3, 3) == sign_test(0, 0) == 1.0
    assert sign_test(2000, 0) == 0.0  # 2^-1999, less than any double


def test_ties_count_half_in_the_share_and_nothing_in_the_sign_test():
    tally = Tally(wins=44, losses=21, ties=35)
    assert tally.share == pytest.approx(0.615)
    assert tally.p_value == sign_test(44, 21)
    low, high = tally.interval()
    assert low < 0.615 < high
    assert Tally(0, 0, 9).interval() == (wilson(4.5, 9).low, wilson(4.5, 9).high)


def test_wilsons_interval_covers_as_it_says():
    draw = random.Random(0)
    hits = [sum(draw.random() < 0.6 for _ in range(60)) for _ in range(2000)]
    covered = sum(low <= 0.6 <= high for low, high in (Tally(k, 60 - k, 0).interval() for k in hits)) / 2000
    assert 0.935 < covered < 0.97  # exact coverage here is 0.953; three standard errors are 0.014


def test_kappa_is_that_of_the_worked_example_in_wikipedia():
    # Ten subjects, fourteen raters, five categories: P = 0.378, Pe = 0.213.
    table = [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
    assert fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)


def test_kappa_at_its_ends():
    assert fleiss_kappa([[3, 0, 0], [0, 3, 0], [0, 0, 3]]) == pytest.approx(1.0)
    assert fleiss_kappa([[1, 1], [1, 1]]) == pytest.approx(-1.0)
    assert fleiss_kappa([[2, 0], [0, 2], [1, 1], [1, 1]]) == pytest.approx(0.0)
    assert fleiss_kappa([[3, 0, 0], [2, 0, 0]]) is None
    assert fleiss_kappa([[1, 0, 0], [0, 1, 0]]) is None


def test_pairs_with_one_vote_say_nothing_of_agreement():
    rows = [[2, 1, 0], [0, 3, 0], [1, 0, 4]]
    assert fleiss_kappa([*rows, [1, 0, 0], [0, 0, 0], [0, 0, 1]]) == fleiss_kappa(rows)


@pytest.mark.parametrize(
    ("winners", "expected"),
    [([1], 1), ([0], 0), ([1, -1], 0), ([1, 1, -1], 1), ([1, 0, 0], 0), ([1, 1, 0, -1], 0), ([-1, -1, -1, 1, 0], -1)],
)
def test_a_majority_is_more_than_half_or_else_a_tie(winners, expected):
    assert majority(winners) == expected
    assert majority([-winner for winner in winners]) == -expected
