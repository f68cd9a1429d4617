"""docs/planning.md says what the code says."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from pixelspace.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/planning.md").read_text(encoding="utf-8")


@pytest.fixture
def papers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("papers")


def test_times_on_the_page_are_those_of_the_papers_recipes(papers):
    assert papers.times() in PAGE


def test_memory_on_the_page_is_that_of_the_papers_recipe(papers):
    for row in papers.memory(papers.MEMORY[:2]).splitlines()[2:]:
        *known, planned, _ = row.split("| ")
        (written,) = re.findall(re.escape("| ".join(known)) + r"\| (\d+) ", PAGE)
        assert int(written) == pytest.approx(int(planned), rel=0.1)


def test_the_page_shows_what_the_command_prints(capsys):
    asked = re.search(r"^    pixelspace (plan .*)$", PAGE, re.MULTILINE)
    assert asked and main(asked[1].split()) == 0

    def without_room(text: str) -> str:
        """Of memory there is a test above, which leaves room for kernels that keep more or less."""
        return re.sub(r"[\d.]+ [GM]B of", "... of", text)

    assert without_room(capsys.readouterr().out) in without_room(PAGE)


def test_defaults_on_the_page_and_in_the_help_are_those_of_a_machine(capsys):
    from pixelspace.cli.plan import number_of
    from pixelspace.training.cost import Machine

    machine = Machine(devices=1, memory=80e9, flops=1e12)
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    rows = re.findall(r"^\| `--([\w-]+)` \| (\S+) \|", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for flag, written in rows:
        assert number_of(flag, written, (r"(B/s)?", "")) == getattr(machine, flag.replace("-", "_"))
        assert f"{written} by default" in said
