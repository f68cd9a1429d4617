"""Questions and people on the command line: answers that were released, and a page whose votes come back."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import as_files, refused, report_of, squares
from tests.conftest import GOLDENS

PALI = GOLDENS / "metrics/dsg/pali17b.csv.gz"


def test_the_protocols_are_listed_one_a_line(cli):
    code, out, _ = cli("protocols")
    names = [line.split()[0] for line in out.splitlines()]
    of_images = "adm50k edm2 coco30k captions10k ffhq50k clean50k ucf-fvd webvid-fvd quick".split()
    assert code == 0 and names == [*of_images, "dsg1k", "counting"]


@pytest.mark.parametrize("command", ["evaluate", "reference", "protocols", "preference", "votes"])
def test_help_says_what_each_option_means(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0 and f"usage: pixelspace {command}" in out


def test_released_answers_give_the_published_score(cli):
    Path("images").mkdir()
    code, out, err = cli("evaluate", "images", "--protocol", "dsg1k", "--answers", PALI)
    assert code == 0, err
    assert "| DSG | 80.49" in out and out.endswith("evaluations/images-dsg1k/report.json\n")
    report = report_of(Path("evaluations/images-dsg1k"))
    assert round(report["numbers"]["DSG"], 2) == 80.49 and report["images"]["count"] == 1060
    assert round(report["numbers"]["DSG relation"], 2) == 34.36


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (("--protocol", "dsg1k"), 2, ["answers.csv is not there yet", "--vqa"]),
        (("--protocol", "counting"), 2, ["prompts.csv", "gecko", "--prompts"]),
        (("--protocol", "dsg1k", "--steps", "3", "--seed", "0"), 2, ["no use for --steps, --seed; leave it out"]),
        (("--protocol", "dsg1k", "--reference", "x"), 2, ["no use for --reference"]),
        (("--protocol", "dsg1k", "--keep"), 2, ["no use for --keep"]),
        (("--protocol", "dsg1k", "--vqa", "Salesforce/blip-vqa-base"), (3, 6), ["blip-vqa-base", "--weights"]),
        (("--protocol", "dsg1k", "--answers", "bad.csv"), 3, ["bad.csv:1: expected the columns item_id"]),
        (("--protocol", "counting", "--prompts", "bad.csv"), 3, ["bad.csv"]),
        (("--protocol", "dsg1k", "--answers", str(PALI), "--out", "images/x"), 2, ["in the images of images"]),
        (("--protocol", "dsg1k", "--answers", str(PALI), "--out", "bad.csv/x"), 2, ["bad.csv is a file"]),
    ],
)
def test_questions_that_cannot_be_scored_are_refused(cli, given, code, words):
    Path("images").mkdir()
    Path("bad.csv").write_text("a,b\n1,2\n")
    result = cli("evaluate", "images", *given)
    if isinstance(code, tuple):  # 1,060 missing images or missing weights: whichever is found first
        assert result[0] in code and result[2].startswith("error: ") and "Traceback" not in result[2]
    else:
        refused(result, code, *words)


def votes(choices: dict[str, str], judge: str) -> str:
    """A judge's file, by the name of the images and the folder that is preferred."""
    key = json.loads(Path("page/key.json").read_text())
    lines = ["pair,choice,milliseconds,judge"]
    for number, pair in enumerate(key["pairs"], 1):
        side = {"alpha": "right", "omega": "left"} if pair["swapped"] else {"alpha": "left", "omega": "right"}
        choice = side.get(choices[pair["name"]], "tie")
        lines.append(f"{key['page']}-{number:04d},{choice},{1000 * number},{judge}")
    return "\n".join(lines) + "\n"


def test_votes_come_back_from_a_page_as_wins_losses_and_ties(cli):
    as_files(squares(4, 0), Path("alpha"))
    as_files(squares(4, 1), Path("omega"))
    Path("prompts.txt").write_text("one\ntwo\nthree\nfour\n")
    code, out, err = cli("preference", "alpha", "omega", "--out", "page", "--prompts", "prompts.txt", "--seed", "3")
    assert code == 0 and out == "page/index.html\n", err
    page = Path("page/index.html").read_text()
    assert "alpha" not in page and "omega" not in page and "three" in page
    first = {"000": "alpha", "001": "alpha", "002": "alpha", "003": "omega"}
    Path("anna.csv").write_text(votes(first, "anna"))
    Path("ben.csv").write_text(votes({**first, "003": "neither"}, "ben"))
    code, out, err = cli("votes", "anna.csv", "ben.csv", "--key", "page/key.json")
    assert code == 0, err
    assert "| majority on each of 4 pairs | 3 (75.0%) | 1 (25.0%) | 0 (0.0%) | 87.5%" in out
    assert "| votes of 2 judges | 6 (75.0%) | 1 (12.5%) | 1 (12.5%) | 81.2%" in out
    given = ("votes", "anna.csv", "--key")
    refused(cli(*given, "anna.csv"), 2, "anna.csv", "JSON")
    refused(cli(*given, "none.json"), 2, "none.json")
    refused(cli(*given, "page/key.json", "--confidence", "2"), 2, "confidence")
    refused(cli("votes", "anna.csv", "anna.csv", "--key", "page/key.json"), 3, "anna judged", "already")
    Path("ben.csv").write_text("pair,choice\n")
    refused(cli("votes", "ben.csv", "--key", "page/key.json"), 3, "ben.csv:1: expected the columns")
    refused(cli("votes", "none.csv", "--key", "page/key.json"), 3, "none.csv")


def test_pages_that_cannot_be_made_are_refused(cli):
    as_files(squares(4, 0), Path("alpha"))
    as_files(squares(3, 1), Path("omega"))
    refused(cli("preference", "alpha", "omega"), 3, "003")
    refused(cli("preference", "alpha", "nowhere"), 3, "nowhere")
    as_files(squares(4, 1), Path("omega"))
    refused(cli("preference", "alpha", "omega", "--out", "alpha"), 2, "alpha")
    Path("prompts.txt").write_text("one\n")
    refused(cli("preference", "alpha", "omega", "--prompts", "prompts.txt"), 3, "prompts.txt")
    assert not Path("preference").exists()
