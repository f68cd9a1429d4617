"""The programs and the notebook in examples/ run from top to bottom, and do what they say."""

import json
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from pixelspace.cli import main
from pixelspace.cli.given import recipe_of

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def said(capsys, monkeypatch):
    """What an example prints, by its name and arguments."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_programs_are_shorter_than_forty_lines():
    programs = sorted(EXAMPLES.glob("*.py"))
    assert len(programs) == 3
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 40 for path in programs)


def test_guidance_of_one_is_the_class_and_more_of_it_goes_beyond_and_narrows(said):
    found = re.findall(r"guidance (\S+): mean (\S+), deviation (\S+)", said("guidance.py"))
    assert [row[0] for row in found] == ["1", "2", "4"]
    (_, mean, deviation), *_ = [tuple(map(float, row)) for row in found]
    assert abs(mean - 1) < 0.03 and abs(deviation - 0.5) < 0.02
    means, deviations = [float(row[1]) for row in found], [float(row[2]) for row in found]
    assert means == sorted(means) and deviations == sorted(deviations, reverse=True)


def test_a_row_of_images_is_drawn_for_each_sampler(said, tmp_path):
    assert main(["train", "hdit-imagenet128-debug", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert "samplers.png" in said("sample.py", tmp_path / "run", tmp_path / "samplers.png", 2)
    with Image.open(tmp_path / "samplers.png") as sheet:
        assert sheet.size == (8 * (2 * 16 + 2) + 2, 3 * (2 * 16 + 2) + 2)


def test_the_recipe_is_one_that_the_command_line_takes_and_trains(tmp_path, capsys):
    made = recipe_of(f"{EXAMPLES / 'recipe.py'}:faces")
    assert [stage.size for stage in made.stages] == [(16, 16), (32, 32)] and made.stages[1].init is not None
    few = [f"stages.{i}.{setting}" for i in (0, 1) for setting in ("batch=4", "images=8", "sampling.steps=2")]
    quick = ["--set", *few, "stages.*.sample_count=1", "stages.*.validate_count=2"]
    assert main(["train", f"{EXAMPLES / 'recipe.py'}:faces", "--out", str(tmp_path / "run"), "--quiet", *quick]) == 0
    grown = json.loads((tmp_path / "run/01-large/transfer.json").read_text())
    assert "trained" in capsys.readouterr().out and grown


@pytest.mark.filterwarnings("ignore")  # of jupyter's own packages
@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom():
    notebook = nbformat.read(EXAMPLES / "first_model.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are made, not kept"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    told = "".join(output.get("text", "") for output in outputs)
    assert len(pictures) == 3 and told.count("sigma") >= 8
    losses = [float(loss) for loss in re.findall(r"\(\d+, ([\d.]+)\)", told)]
    assert losses[-1] < losses[0]
