import json
import os
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelspace.cli import main
from pixelspace.serving import watch_runs
from pixelspace.serving.watch_runs import DEPTH, MAX_KEPT, Runs, find_runs, growth, leaves, sheets
from pixelspace.training.log import Metrics, read_metrics
from pixelspace.training.preview import save_sheets
from tests.serving.watched import RECIPE, draw_samples, make_run, stage_of, train_rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    short = "--set", "stages.*.images=8", "stages.*.save_images=4", "stages.*.sample_images=4"
    assert main(["train", "greedy-cc12m-512-debug", "--out", str(root / "grown"), "--quiet", *short]) == 0
    return root


def only(root, name="run"):
    [run] = [run for run in Runs(root).summary()["runs"] if run["name"] == name]
    return run


def test_a_training_is_shown_as_it_was(trained):
    runs = Runs(trained)
    [run] = runs.summary()["runs"]
    assert (run["name"], run["recipe"], run["trouble"]) == ("grown", "greedy-cc12m-512-debug", "")
    told = [(one["name"], one["state"], one["seen"], one["images"], one["left"]) for one in run["stages"]]
    assert told == [("core-64", "done", 8, 8, None), ("grow-512", "done", 8, 8, None)]
    assert abs(time.time() - run["updated"]) < 300
    core, grow = (runs.detail(run["id"], i) for i in (0, 1))
    assert core and grow and (core["growth"], core["from"], grow["from"]) == (None, "", "core-64")
    assert core["frozen"] == [] and "core.*" in grow["frozen"]
    folder = trained / "grown" / "01-grow-512"
    rows = read_metrics(folder, "train")
    for name in ("loss", "grad_norm", "lr", "images_per_second", "data_wait", "peak_bytes"):
        assert grow["train"][name] == [row[name] for row in rows]
    assert list(zip(*grow["train"]["octiles"], strict=True)) == [tuple(row["octiles"]) for row in rows]
    assert grow["validation"]["loss"] == [row["loss"] for row in read_metrics(folder, "validation")]
    assert [one["images"] for one in grow["samples"]] == [4, 8] and grow["checkpoints"] == [4, 8]
    report = json.loads((folder / "transfer.json").read_text())
    assert grow["growth"]["total"] == {way: len(report[way]) for way in ("copied", "resized", "fresh", "unused")}
    [part] = [part for part in grow["growth"]["parts"] if part["part"] == "core"]
    assert part["copied"] == sum(name.startswith("core.") for name in report["copied"]) > 0
    stage = runs.stage(run["id"], 1)
    assert stage and stage.sheet(8, "") == (folder / "samples" / "0000000008.png").read_bytes()


def test_reading_a_run_writes_nothing_there(trained):
    def state():
        return {path: path.stat().st_mtime_ns for path in trained.rglob("*")}

    before, runs = state(), Runs(trained)
    run = runs.summary()["runs"][0]["id"]
    runs.detail(run, 1), runs.settings(run)
    assert state() == before


def test_runs_are_found_where_they_lie_and_a_run_itself_is_one(tmp_path):
    for path in ("a", "b/c", "d/e/f", "d/e/f/g", "1/2/3/4", ".hidden"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / path / "recipe.json").write_text("{}")
    names = [os.path.relpath(path, tmp_path) for path in find_runs(tmp_path)]
    assert DEPTH == 3 and sorted(names) == ["a", "b/c", "d/e/f"]
    assert list(find_runs(tmp_path / "a")) == [tmp_path / "a"]
    assert Runs(tmp_path / "a").summary()["runs"][0]["name"] == "a"


def test_a_stage_is_waiting_then_training_then_silent_then_done(tmp_path):
    recipe = make_run(tmp_path / "run", "stages.0.images=40")
    runs = Runs(tmp_path)

    def stage():
        return runs.summary()["runs"][0]["stages"][0]

    assert (stage()["state"], stage()["seen"]) == ("waiting", 0)
    folder = stage_of(tmp_path / "run", recipe)
    assert (stage()["state"], stage()["seen"]) == ("training", 0)
    metrics = Metrics(folder, [])
    train_rows(metrics, range(1, 6))
    now = stage()
    assert (now["state"], now["seen"], now["rate"]) == ("training", 20, 100.0)
    assert now["left"] == pytest.approx((40 - 20) / 100)
    past = time.time() - 1000
    for path in (folder / "metrics.jsonl", folder):
        os.utime(path, (past, past))
    assert (stage()["state"], stage()["left"]) == ("silent", None)
    train_rows(metrics, range(6, 11))
    assert (stage()["state"], stage()["seen"]) == ("done", 40)


def test_sheets_are_those_of_training_the_finest_level_first(tmp_path):
    for images in (16, 4):
        draw_samples(tmp_path, images, levels=(16, 4, 8))
    (tmp_path / "samples" / "notes.png").write_bytes(b"")
    found = sheets(tmp_path)
    assert {images: list(levels) for images, levels in found.items()} == {4: ["", "8", "4"], 16: ["", "8", "4"]}
    assert found[16]["8"] == tmp_path / "samples" / "0000000016_8.png"


def test_levels_of_clips_are_in_order_of_their_pixels(tmp_path):
    clips = [torch.zeros(2, 16, size, size, 3, dtype=torch.uint8) for size in (32, 16)]
    save_sheets([*clips, torch.zeros(2, 16, 16, 3, dtype=torch.uint8)], tmp_path / "samples", 8)
    assert list(sheets(tmp_path)[8]) == ["", "16x16x16", "16"]


def test_the_newest_runs_are_shown_and_it_is_said_how_many_are_not(tmp_path, monkeypatch):
    for i in range(3):
        make_run(tmp_path / f"{i}")
        os.utime(tmp_path / f"{i}" / "recipe.json", (i, i))
    monkeypatch.setattr(watch_runs, "MAX_RUNS", 2)
    summary = Runs(tmp_path).summary()
    assert summary["hidden"] == 1 and {run["name"] for run in summary["runs"]} == {"1", "2"}


def test_settings_are_told_by_their_dotted_paths(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "stages.0.optimizer.lr=0.25", "seed=3")
    runs = Runs(tmp_path)
    settings = {run["name"]: dict(runs.settings(run["id"]) or []) for run in runs.summary()["runs"]}
    differ = {path for path in settings["a"] if settings["a"][path] != settings["b"].get(path)}
    assert differ == {"stages.0.optimizer.lr", "seed"} and settings["b"]["stages.0.optimizer.lr"] == "0.25"
    assert leaves({"a": [1, {"b": None}], "c": {}}) == [("a.0", "1"), ("a.1.b", "null"), ("c", "{}")]


@pytest.mark.parametrize(
    "recipe",
    [
        "",
        "[]",
        '{"stages": 7}',
        '{"name": 1, "seed": -1, "stages": [1, {}, {"name": ["x"], "images": "many", "batch": -1, "size": 3}]}',
        '{"name": "\\ud800", "stages": [{"name": "\\ud800", "freeze": ["\\ud800"], "init": 3, "optimizer": 4}]}',
        '{"stages": [{"name": "../../secret", "images": 1, "batch": 1}]}',
        '{"stages": ' + "[" * 900 + "]" * 900 + "}",
        '{"stages": [{"name": "train", "images": 1e999, "batch": 99999999999999999999}]}',
    ],
    ids=range(8),
)
def test_a_recipe_of_any_kind_is_shown_or_said_to_be_unreadable(tmp_path, recipe):
    run = tmp_path / "run"
    (run / "00-train").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "images": 7, "attempt": 1}\n')
    (run / "recipe.json").write_text(recipe)
    runs = Runs(tmp_path)
    summary = runs.summary()
    json.dumps(summary, allow_nan=False).encode()
    [told] = summary["runs"]
    assert (told["trouble"] != "") == (recipe in ("", "[]"))
    for i in range(3):
        detail = runs.detail(told["id"], i)
        json.dumps([detail, runs.settings(told["id"])], allow_nan=False).encode()
        assert detail is None or detail["seen"] == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda below: st.lists(below, max_size=9) | st.dictionaries(st.text(max_size=4), below, max_size=3),
    max_leaves=12,
)
NUMBERS = st.sampled_from([5e-324, 1.7e308, -1.7e308, 1e299, float("inf"), float("nan"), 10**400, -1, 0, 0.5])
NAMES = ("loss", "images_per_second", "octiles", "best", "lower", "attempt", "peak_bytes")
ROWS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["train", "validation", "evaluation/x", "not_finite"]), "step": st.integers(0, 9)},
    optional={**dict.fromkeys(NAMES, NUMBERS | st.lists(NUMBERS, min_size=8, max_size=8) | JSON), "\ud800": JSON},
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=6))
def test_metrics_of_any_kind_are_shown_as_json_that_browsers_read(tmp_path, rows):
    if not (tmp_path / "run").exists():
        make_run(tmp_path / "run")
    folder = tmp_path / "run" / "00-train"
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({**row, "images": 4 * row["step"]}) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    runs = Runs(tmp_path)
    summary = runs.summary()
    detail = runs.detail(summary["runs"][0]["id"], 0)
    assert detail and detail["unreadable"] == 0
    json.dumps([summary, detail], allow_nan=False).encode()


def test_a_report_of_growth_of_any_kind_is_counted_or_left_out(tmp_path):
    assert growth(tmp_path) is None
    (tmp_path / "transfer.json").write_text('{"copied": [1, null], "resized": 3, "fresh": {"a.b": {}}, "source": []}')
    found = growth(tmp_path)
    assert found and found["total"] == {"copied": 2, "resized": 0, "fresh": 1, "unused": 0} and found["source"] == ""


def test_folders_that_are_links_are_not_entered(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    recipe = make_run(elsewhere)
    draw_samples(stage_of(elsewhere, recipe), 4)
    root = tmp_path / "runs"
    root.mkdir()
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    assert Runs(root).summary()["runs"] == []
    make_run(root / "run")
    stage = stage_of(root / "run", recipe)
    (stage / "samples").symlink_to(elsewhere / stage.name / "samples", target_is_directory=True)
    runs = Runs(root)
    detail = runs.detail(runs.summary()["runs"][0]["id"], 0)
    assert detail and detail["samples"] == []


def test_only_the_last_stages_asked_for_are_kept_in_memory(tmp_path):
    for i in range(MAX_KEPT + 2):
        train_rows(Metrics(stage_of(tmp_path / f"{i}", make_run(tmp_path / f"{i}")), []), [1])
    runs = Runs(tmp_path)
    ids = {run["name"]: run["id"] for run in runs.summary()["runs"]}
    for i in range(MAX_KEPT + 2):
        runs.detail(ids[str(i)], 0)
    kept = [i for i in range(MAX_KEPT + 2) if (stage := runs.stage(ids[str(i)], 0)) and stage._all]
    assert kept == list(range(2, MAX_KEPT + 2))
    again = runs.detail(ids["0"], 0)
    assert again and again["train"]["images"] == [4]


def test_a_run_that_is_taken_away_is_gone(tmp_path):
    make_run(tmp_path / "run")
    runs = Runs(tmp_path)
    key = only(tmp_path)["id"]
    assert runs.stage(key, 0) and runs.settings(key)
    (tmp_path / "run" / "recipe.json").unlink()
    assert runs.summary()["runs"] == [] and runs.stage(key, 0) is None and runs.settings(key) is None
    make_run(tmp_path / "run")
    assert runs.stage(key, 0) is not None and only(tmp_path)["recipe"] == RECIPE
