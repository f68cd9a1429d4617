"""Text on the command line: training on captions, sampling by prompts, and one line for what cannot be meant."""

import json

import pytest

from pixelspace.cli import main
from tests.cli.conftest import as_files, refused, report_of, squares


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The debug run on captions."""
    folder = tmp_path_factory.mktemp("told") / "run"
    assert main(["train", "hdit-text-debug", "--out", str(folder), "--quiet"]) == 0
    return folder


def test_images_are_drawn_by_prompts_and_told_apart(cli, told, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red fish\nein grüner Fisch\n", encoding="utf-8")
    given = ("sample", told, "--text", "a cat", "--text-file", "prompts.txt", "-n", "6", "--guidance", "2", "--quiet")
    code, out, err = cli(*given, "--negative", "blue", "--out", "drawn")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "drawn/metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["a cat", "a red fish", "ein grüner Fisch"] * 2
    assert all((tmp_path / "drawn" / row["file_name"]).is_file() for row in rows) and "6 images" in out


def test_a_model_of_text_draws_without_a_prompt(cli, told):
    code, out, err = cli("sample", told, "-n", "2", "--quiet")
    assert code == 0 and "2 images" in out, err


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (("--text", "  "), 2, ["text: prompt 1 of 1 is blank"]),
        (("--text", "a", "--text", "b", "-n", "3"), 2, ["2 prompts for 3 images", "n must be a multiple"]),
        (("--text", "a", "--negative", "b", "--guidance", "1"), 2, ["negative: without guidance"]),
        (("--text-file", "none.txt"), 3, ["none.txt", "No such file"]),
        (("--text-file", "latin.txt"), 3, ["latin.txt: not UTF-8 at byte 3"]),
        (("--text-file", "blank.txt"), 3, ["blank.txt:2: an empty caption"]),
        (("--text", "a", "--encoder", "elsewhere"), 2, ["Bytes is part of an installed package"]),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused(cli, told, tmp_path, given, code, words):
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (tmp_path / "blank.txt").write_text("a cat\n \n")
    refused(cli("sample", told, *given, "--quiet"), code, *words)
    assert not (tmp_path / "samples").exists()


def test_text_for_a_network_that_reads_none_is_refused(cli, run_folder):
    refused(cli("sample", run_folder, "--text", "a cat", "--quiet"), 2, "this model reads no text; leave it out")
    refused(cli("train", "hdit-imagenet128-debug", "--text", "bytes", "--quiet"), 2, "no network of", "reads text")


@pytest.mark.parametrize(
    ("encoder", "code", "words"),
    [
        ("minilm", 2, ["tokens of width 384", "the network reads 256 and 256"]),
        ("empty", 4, ["empty", "config.json"]),
    ],
)
def test_another_encoder_must_fit_the_network(cli, tmp_path, encoder, code, words):
    (tmp_path / "empty").mkdir()
    refused(cli("train", "hdit-text-debug", "--text", encoder, "--quiet"), code, *words)


def test_pictures_without_captions_are_refused_before_training(cli, tmp_path):
    pictures = as_files(squares(8, 0), tmp_path / "pictures")
    result = cli("train", "hdit-text-debug", "--data", pictures, "--quiet")
    refused(result, 3, "8 of 8 training samples have no caption", "give them one")


def test_embeddings_take_the_encoders_place(cli, tmp_path):
    pictures = as_files(squares(12, 0), tmp_path / "pictures")
    rows = ({"file_name": f"{i:03d}.png", "text": [f"squares {i % 5}", "many squares"]} for i in range(12))
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = cli("embed", pictures, "read", "--encoder", "bytes", "--quiet")
    assert code == 0, err
    train = ("train", "hdit-text-debug", "--data", pictures, "--text", "read", "--quiet")
    code, _, err = cli(*train, "--set", "stages.0.data.holdout=0")
    assert code == 0, err
    code, _, err = cli("sample", "runs/hdit-text-debug", "--text", "many squares", "--quiet")
    assert code == 0, err
    (tmp_path / "read/embeddings.json").unlink()
    refused(cli("train", "runs/hdit-text-debug", "--quiet", "--stage", "train", "--out", "other"), 3, "embed")


@pytest.mark.slow
def test_a_model_of_text_is_judged_by_its_training_captions_or_given_ones(cli, told, tmp_path):
    judged = ("evaluate", told, "--count", "8", "--steps", "2", "--metric", "precision", "--quiet", "--batch", "8")
    code, _, err = cli(*judged, "--out", "own")
    assert code == 0, err
    assert report_of(tmp_path / "own")["numbers"].keys() == {"precision", "recall"}
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    code, _, err = cli(*judged, "--prompts", "prompts.txt", "--out", "given")
    assert code == 0, err
    given, own = (report_of(tmp_path / name) for name in ("given", "own"))
    assert given["images"] != own["images"]
    refused(
        cli("evaluate", told, "--protocol", "coco30k", "--out", "coco"), 2, "coco30k draws by captions", "--prompts"
    )


def test_what_data_and_text_put_into_a_recipe_can_be_set(cli):
    given = ("--data", "cc12m/{00000..00009}.tar", "--text", "minilm", "--json")
    settings = (
        "stages.0.data.source.text_key=long",
        "stages.0.text.length=20",
        "stages.0.data.source.max_bad_share=0.5",
    )
    code, out, err = cli("show", "hdit-text-debug", *given, "--set", *settings)
    assert code == 0, err
    (stage,) = json.loads(out)["stages"]
    assert stage["data"]["source"]["type"] == "Shards" and stage["data"]["source"]["text_key"] == "long"
    assert stage["text"] == {"type": "MiniLM", "length": 20, "fill": True}
