import json

import torch

from pixelspace.training.log import Metrics, OctileMeans, plot_loss, read_metrics


def test_a_resumed_run_s_rows_replace_those_of_the_attempt_before(tmp_path):
    first = Metrics(tmp_path, [])
    for step in (1, 2, 3):
        first.write("train", step, step * 8, loss=float(step))
    with first.path.open("a") as file:
        file.write('{"kind": "train", "att')  # a kill in the middle of a row
    second = Metrics(tmp_path, [])
    second.write("train", 2, 16, loss=20.0)
    second.write("validation", 2, 16, loss=7.0)
    rows = read_metrics(tmp_path, "train")
    assert [(row["attempt"], row["step"], row["loss"]) for row in rows] == [(1, 1, 1.0), (2, 2, 20.0), (1, 3, 3.0)]
    assert [row["loss"] for row in read_metrics(tmp_path, "validation")] == [7.0]


def test_losses_are_averaged_per_eighth_of_the_levels():
    means = OctileMeans(torch.arange(1.0, 8.0))
    means.add(torch.tensor([0.5, 0.6, 7.5]), torch.tensor([1.0, 3.0, 5.0]))
    assert means.take() == [2.0, None, None, None, None, None, None, 5.0]
    assert means.take() == [None] * 8


def test_the_curve_is_drawn_from_any_rows(tmp_path):
    metrics = Metrics(tmp_path, [])
    plot_loss(tmp_path, tmp_path / "loss.png")
    metrics.write("train", 1, 8, loss=1.0, octiles=[1.0, None] * 4)
    metrics.write("validation", 1, 8, loss=1.0)
    plot_loss(tmp_path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


class Recorder:
    def __init__(self):
        self.seen = []

    def log(self, metrics, images):
        self.seen.append((dict(metrics), images))

    def picture(self, name, path, images):
        self.seen.append((name, path, images))

    def close(self):
        pass


def test_trackers_get_the_numbers_alone(tmp_path):
    recorder = Recorder()
    Metrics(tmp_path, [recorder]).write("train", 1, 8, loss=0.5, octiles=[1.0], replay="x")
    assert recorder.seen == [({"train/loss": 0.5}, 8)]


def test_rows_are_json_a_line(tmp_path):
    Metrics(tmp_path, []).write("train", 1, 8, loss=0.1)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"kind": "train", "attempt": 1, "step": 1, "images": 8, "loss": 0.1}
