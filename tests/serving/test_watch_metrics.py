import json

import pytest

from pixelspace.serving import watch_metrics
from pixelspace.serving.watch_metrics import POINTS, Metrics, curves, evaluations
from pixelspace.training import log
from tests.serving.watched import train_rows


def read(folder, limit=watch_metrics.ALL) -> Metrics:
    metrics = Metrics(folder / "metrics.jsonl", limit)
    metrics.refresh()
    return metrics


def test_rows_are_those_that_training_itself_reads_resumes_and_all(tmp_path):
    train_rows(log.Metrics(tmp_path, []), range(1, 9))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "att')  # a kill in the middle of a row
    train_rows(log.Metrics(tmp_path, []), range(5, 12), loss=2.0)
    metrics = read(tmp_path)
    ours = [(row.images, row.numbers["loss"], row.lists["octiles"]) for row in metrics.rows("train")]
    theirs = [(row["images"], row["loss"], row["octiles"]) for row in log.read_metrics(tmp_path, "train")]
    assert ours == theirs and len(ours) == 11
    assert (metrics.attempt, metrics.images, metrics.unreadable, metrics.cut) == (2, 44, 1, False)


def test_a_file_read_as_it_grows_is_as_one_read_at_the_end(tmp_path):
    train_rows(log.Metrics(tmp_path, []), range(1, 30))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    path = tmp_path / "growing" / "metrics.jsonl"
    path.parent.mkdir()
    growing = Metrics(path)
    growing.refresh()
    for end in range(0, len(whole) + 997, 997):  # rows are cut anywhere
        with path.open("ab") as file:
            file.write(whole[max(0, end - 997) : end])
        growing.refresh()
    assert growing.kinds == read(tmp_path).kinds and growing.unreadable == 0


def test_a_run_that_began_anew_is_read_anew(tmp_path):
    train_rows(log.Metrics(tmp_path, []), range(1, 9))
    metrics = read(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    metrics.refresh()
    assert metrics.kinds == {} and metrics.images == 0
    train_rows(log.Metrics(tmp_path, []), range(1, 3))
    metrics.refresh()
    assert [row.images for row in metrics.rows("train")] == [4, 8]


def test_of_a_long_file_the_last_rows_are_read_and_it_is_said(tmp_path):
    train_rows(log.Metrics(tmp_path, []), range(1, 101))
    metrics = read(tmp_path, 4096)
    assert metrics.cut and metrics.unreadable == 0
    steps = [row.images // 4 for row in metrics.rows("train")]
    assert steps == list(range(steps[0], 101)) and 3 < len(steps) < 20


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[1]",
        "{}",
        "[" * 30_000,
        '{"kind": 1, "step": 1, "images": 1}',
        '{"kind": "train", "step": -1, "images": 1}',
        '{"kind": "train", "step": 1, "images": 1e300}',
        '{"kind": "train", "step": true, "images": 1}',
        json.dumps({"kind": "train", "step": 1, "images": 1, "x": "x" * (1 << 16)}),
    ],
    ids=range(9),
)
def test_a_line_that_is_no_row_is_counted_and_left_out(tmp_path, line):
    train_rows(log.Metrics(tmp_path, []), [3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    metrics = read(tmp_path)
    assert metrics.unreadable == 1 and [row.images for row in metrics.rows("train")] == [12]


def test_numbers_that_are_not_finite_are_unknown(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1, "images": 4, "loss": NaN, "lr": 1e999, "octiles": [1, "x", null, -Infinity]}\n'
    )
    [row] = read(tmp_path).rows("train")
    assert row.numbers == {"loss": None, "lr": None} and row.lists == {"octiles": [1.0, None, None, None]}
    assert curves([row], ["loss"]) == {"images": [4], "loss": [None], "octiles": [[None]] * 8}


def test_a_thinned_curve_keeps_the_mean_and_its_beginning_as_it_grows(tmp_path):
    train_rows(log.Metrics(tmp_path, []), range(1, 8 * POINTS + 1))
    rows = read(tmp_path).rows("train")
    curve = curves(rows, ["loss"])
    assert len(curve["images"]) == POINTS and curve["images"][-1] == rows[-1].images
    exact = sum(row.numbers["loss"] or 0 for row in rows) / len(rows)
    assert sum(curve["loss"]) / POINTS == pytest.approx(exact, rel=1e-12)
    earlier = curves(rows[: 5 * POINTS + 4], ["loss"])  # whole groups of as many
    assert curve["loss"][: len(earlier["loss"])] == earlier["loss"]
    assert curve["octiles"][0] == [None] * POINTS and curve["octiles"][3] == [3.0] * POINTS


def test_evaluations_say_which_number_is_best_and_which_way(tmp_path):
    metrics = log.Metrics(tmp_path, [])
    metrics.write("evaluation/quick", 2, 8, best="fid", lower=True, fid=30.0, precision=0.5)
    metrics.write("evaluation/quick", 4, 16, best="fid", lower=True, fid=20.0)
    assert evaluations(read(tmp_path)) == [
        {
            "name": "quick",
            "best": "fid",
            "lower": True,
            "numbers": {"fid": [[8, 30.0], [16, 20.0]], "precision": [[8, 0.5]]},
        }
    ]
