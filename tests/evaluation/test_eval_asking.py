"""Questions about a folder of images, from the network or the file that answers them to the report."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pixelspace.data.emoji import Emoji
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.asking import ask
from pixelspace.evaluation.protocols import QUESTIONS
from pixelspace.evaluation.report import read_report
from tests.evaluation.judged import computing

GOLDENS = Path(__file__).parents[1] / "goldens" / "metrics"
DSG, COUNTING = QUESTIONS["dsg1k"](), QUESTIONS["counting"]()
BLIP = "tiny/blip"

PROMPTS = """index,prompt,has_numeral,is_frequent,entities,prompt_type,dataset_id
0,3 cats.,1,1,cat:3,numeric_simple,geckonum_00000
1,"Two red cubes and one photo.",0,1,"red cube:2,photo:1",2-additive,geckonum_00001
2,Some cats and some cubes. There are fewer cats than cubes.,0,-1,"cat:fewer,cube:X",approx-2-entity,geckonum_00002
"""
CATS, CUBES, PHOTOS = (f"How many {noun} are in the image?" for noun in ("cats", "red cubes", "photos"))
ANSWERS = f"""item_id,question_id,question,answer
geckonum_00000,1,{CATS},three
geckonum_00001,1,{CUBES},2
geckonum_00001,2,{PHOTOS},a few
"""


def people(*rows: tuple[str, str, tuple]) -> str:
    lines = [f"{image},m,{question},{i},{vote}" for image, question, votes in rows for i, vote in enumerate(votes)]
    return "\n".join(["image_id,model,question,annot_id,answer", *lines, ""])


HUMAN = people(
    *(("geckonum_00000", CATS, (3, 3, 4)), ("geckonum_00001", CUBES, (2, 2, 2)), ("geckonum_00001", PHOTOS, (4, 4, 1)))
)


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder with images of two prompts, prompts.csv, answers.csv and human.csv."""
    (tmp_path / "images").mkdir()
    for number, sample in enumerate(map(Emoji(("animals",)).open().__getitem__, (0, 9))):
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(tmp_path / f"images/geckonum_{number:05}.png")
    for name, text in (("prompts", PROMPTS), ("answers", ANSWERS), ("human", HUMAN)):
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def counted(files: Path, **more):
    more.setdefault("prompts", files / "prompts.csv")
    weights = more.pop("weights", files / "weights")
    return ask(more.pop("folder", files / "images"), COUNTING, files / "out", computing(weights=weights), **more)


def test_released_answers_about_stable_diffusion_give_the_published_score(tmp_path):
    report = ask(tmp_path, DSG, tmp_path / "out", computing(), answers=GOLDENS / "dsg" / "pali17b.csv.gz")
    expected = json.loads((GOLDENS / "dsg.json").read_text())["reference_numbers_on_released_sd21_answers"]["pali17b"]
    assert round(report.numbers["DSG"], 2) == expected["all"] == 80.49
    found = {name.removeprefix("DSG "): round(value, 1) for name, value in report.numbers.items() if name != "DSG"}
    assert found == expected["by_category"]
    details = report.data["numbers"][0]["details"]
    assert details["of"] == 1060 and details["95% from"] < report.numbers["DSG"] < details["95% to"]
    assert "1 images have no answers and count 0: tifa160_134" in report.data["notes"]
    assert report.data["images"]["count"] == 1060 and report.data["reference"] is None
    assert read_report(tmp_path / "out") == report
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["vqa"] == "answers of pali17b.csv.gz" and len(scores["values"]) == 1060


def test_counts_are_scored_from_answers(files):
    report = counted(files, answers=files / "answers.csv")
    assert report.numbers == {
        "VQA count accuracy (GeckoNum prompts), images": 50.0,
        "VQA count accuracy (GeckoNum prompts), questions": pytest.approx(200 / 3),
        **{"questions of type numeric_simple": 100.0, "questions of type 2-additive": 50.0},
        **{"questions of number 1": 0.0, "questions of number 2": 100.0, "questions of number 3": 100.0},
        "mean absolute error": 0.0,
    }
    assert [row["details"]["of"] for row in report.data["numbers"][:4]] == [2, 3, 1, 2]
    assert [row["better"] for row in report.data["numbers"]] == ["higher"] * 7 + ["lower"]
    assert report.data["notes"] == [
        "1 prompts of approx-2-entity are left out",
        "1 answers name no number, and are wrong",
    ]
    assert report.data["networks"] == []


def test_people_are_held_against_the_answers(files):
    report = counted(files, answers=files / "answers.csv", human=files / "human.csv")
    assert report.numbers["people's count accuracy, questions"] == pytest.approx(200 / 3)
    assert report.numbers["people's count accuracy, images"] == 50.0
    assert report.numbers["agreement with people"] == pytest.approx(200 / 3)
    # Both say 3 and 2 of the first two; of the third people say 4, the answers no number: chance alone has 2/9.
    assert report.numbers["Cohen's kappa with people"] == pytest.approx((2 / 3 - 2 / 9) / (1 - 2 / 9))


@pytest.mark.usefixtures("offline")
def test_a_network_is_asked_and_named_and_not_asked_again(tiny, files):
    report = counted(files, vqa=BLIP, weights=tiny)
    (network,) = report.data["networks"]
    assert network["name"].startswith(f"VQA {BLIP}, prompt ") and len(network["sha256"]) == 64
    answers = (files / "out" / "answers.csv").read_text().splitlines()
    assert len(answers) == 1 + 3 and answers[1].startswith(f"geckonum_00000,1,{CATS},")
    changed = [line.replace(CATS + ",", CATS + ",3 or ") for line in answers]
    (files / "out" / "answers.csv").write_text("\n".join(changed) + "\n")
    counted(files, vqa=BLIP, weights=tiny)
    assert (files / "out" / "answers.csv").read_text().splitlines() == changed
    (files / "out" / "answers.csv").write_text("\n".join(answers[:2]) + "\n")
    again = counted(files, vqa=BLIP, weights=tiny)
    assert (files / "out" / "answers.csv").read_text().splitlines() == answers, "only what was missing"
    assert again.numbers == report.numbers
    alone = counted(files)
    assert alone.numbers == report.numbers and alone.data["networks"] == [network], "whose answers they are is known"


@pytest.mark.usefixtures("offline")
def test_answers_of_another_network_or_about_other_images_are_not_gone_on_with(tiny, files):
    counted(files, vqa=BLIP, weights=tiny)
    said = r"answers\.csv: holds answers of another network or about other images; name another --answers"
    with pytest.raises(UserError, match=said):
        counted(files, vqa="tiny/instructblip", weights=tiny)
    (files / "images").rename(files / "moved")
    counted(files, vqa=BLIP, weights=tiny, folder=files / "moved")
    Image.new("RGB", (72, 72)).save(files / "moved" / "geckonum_00001.png")
    with pytest.raises(UserError, match=said):
        counted(files, vqa=BLIP, weights=tiny, folder=files / "moved")
    with pytest.raises(UserError, match=said):
        counted(files, vqa=BLIP, weights=tiny, folder=files / "moved", answers=files / "answers.csv")


def test_missing_images_are_named_before_a_network_is_looked_for(files):
    (files / "images" / "geckonum_00001.png").unlink()
    with pytest.raises(DataError, match=r"images: 1 of 2 images are missing: geckonum_00001\.png"):
        counted(files, vqa=BLIP)


@pytest.mark.usefixtures("offline")
def test_an_image_that_cannot_be_read_is_named(tiny, files):
    (files / "images" / "geckonum_00001.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"geckonum_00001\.png"):
        counted(files, vqa=BLIP, weights=tiny)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, r"answers: .*answers\.csv is not there yet; name a network that answers by --vqa"),
        ({"prompts": None}, r"prompts: counting needs the benchmark's prompts\.csv"),
    ],
)
def test_what_counting_needs_is_named(files, more, said):
    with pytest.raises(UserError, match=said):
        counted(files, **more)


def test_peoples_counts_are_read_before_a_network_is_asked(files):
    with pytest.raises(DataError, match=r"nobody\.csv"):
        counted(files, human=files / "nobody.csv", vqa=BLIP)


@pytest.mark.parametrize("given", ["prompts", "human"])
def test_what_dsg_does_not_read_is_refused(files, given):
    with pytest.raises(UserError, match="dsg1k: its questions are packaged, and nobody counts"):
        ask(files / "images", DSG, files / "out", computing(), **{given: files / f"{given}.csv"})


def test_answers_to_other_questions_are_refused(files):
    (files / "answers.csv").write_text(ANSWERS.replace("How many cats", "How many dogs"))
    with pytest.raises(DataError, match=r"answers\.csv:2: geckonum_00000, question 1: 'How many dogs are"):
        counted(files, answers=files / "answers.csv")


def test_questions_are_asked_by_one_process_about_a_folder(files):
    with pytest.raises(UserError, match="counting: questions are asked by one process, found 2"):
        ask(files / "images", COUNTING, files / "out", computing(0, 2))
    with pytest.raises(DataError, match=r"nowhere: no such folder; counting looks for images ITEM\.png in one"):
        counted(files, folder=files / "nowhere")
