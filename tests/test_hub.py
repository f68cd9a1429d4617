import io
import json

import pytest
from PIL import Image

import pixelspace as ps
from pixelspace.cli import main
from pixelspace.config import parse_json
from pixelspace.data.pictures import settings_in
from pixelspace.errors import UserError
from pixelspace.hub import check_name, fetched
from pixelspace.places import without_places
from pixelspace.training.log import read_metrics
from tests.cli.conftest import as_files, squares
from tests.local_hub import TOKEN, local_hub

DEBUG = "hdit-imagenet128-debug"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret-place") / "run"
    assert main(["train", DEBUG, "--out", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def hub():
    with local_hub() as one:
        yield one


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


def _as_user(patch, hub, cache, token=TOKEN, offline=False):
    """What HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and HF_HUB_OFFLINE set, which the library reads when it is imported."""
    constants = "huggingface_hub.constants."
    patch.setattr(constants + "ENDPOINT", hub.address)
    patch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants + "HF_HUB_CACHE", str(cache))
    patch.setattr(constants + "HF_HUB_OFFLINE", offline)
    patch.setenv("HF_TOKEN", token)


@pytest.fixture
def pixelspace(hub, cache, monkeypatch, capsys):
    """Runs a command as a user of the hub does: (exit code, stdout, stderr)."""

    def call(*arguments, **given):
        with monkeypatch.context() as patch:
            _as_user(patch, hub, cache, **given)
            code = main([str(one) for one in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def pushed(run, hub, cache):
    with pytest.MonkeyPatch.context() as patch:
        _as_user(patch, hub, cache)
        given = {"licence": "mit", "data": "my own photographs", "private": True}
        assert ps.load(run, device="cpu").push_to_hub("me/faces", **given) == "hf://me/faces"
    (files,) = hub.commits["me/faces"]
    return files


def test_what_is_pushed_is_the_model_its_card_and_its_recipe_and_no_place(pushed, hub, run):
    assert {*pushed} - {".gitattributes"} == {
        *("MANIFEST.json", "state.json", "model.safetensors", "README.md", "recipe.json")
    }
    assert hub.private["me/faces"]
    for name, data in pushed.items():
        assert b"secret-place" not in data and str(run.parent).encode() not in data, name
    card = pushed["README.md"].decode()
    for said in ("license: mit", "HDiT", "32 of 32", "my own photographs", 'ps.load("hf://me/faces")', "averaged"):
        assert said in card
    assert parse_json(pushed["recipe.json"].decode())["name"] == DEBUG


def test_what_was_pushed_draws_the_same_bits_here_and_without_a_connection(pushed, pixelspace, hub, run, tmp_path):
    assert pixelspace("sample", "hf://me/faces", "-n", 2, "--seed", 3, "--out", tmp_path / "a")[0] == 0
    assert main(["sample", str(run), "-n", "2", "--seed", "3", "--out", str(tmp_path / "b"), "--quiet"]) == 0
    hub.asked.clear()
    assert pixelspace("sample", "hf://me/faces", "-n", 2, "--seed", 3, "--out", tmp_path / "c", offline=True)[0] == 0
    assert hub.asked == []
    for name in ("000000.png", "000001.png"):
        fetched, trained, kept = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert len({Image.open(io.BytesIO(data)).tobytes() for data in (fetched, trained, kept)}) == 1
        told, known = settings_in(kept), settings_in(trained)  # a run knows more of its weights
        assert told["weights"] == known["weights"] and (told["model"], known["model"]) == ("faces", "run")
        assert known["recipe"] == DEBUG and known["images seen"] == 32 and known["averaged"]


def test_what_was_pushed_is_judged_and_diagnosed_by_its_address(pushed, pixelspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_files(squares(16, 0), tmp_path / "real")
    few = ("--reference", "real", "--count", 16, "--metric", "FD-Lite0", "--steps", 2, "--quiet")
    code, out, err = pixelspace("evaluate", "hf://me/faces", *few)
    assert code == 0 and "FD-Lite0" in out, err
    assert (tmp_path / "evaluations/faces-quick/report.json").is_file()
    code, out, err = pixelspace("diagnose", "hf://me/faces", "--data", "real", "-n", 8, "--steps", 2)
    assert code == 0 and "what it draws, over what real images have" in out, err


def test_what_cannot_be_had_is_a_line(pushed, pixelspace, tmp_path):
    for address, code, said in (
        ("hf://me/faces@nothing", 4, "no such revision"),
        ("hf://me/nobody", 6, "no such model on the hub"),
        ("hf://faces", 2, "expected hf://user/name"),
    ):
        found, out, err = pixelspace("sample", address, "--out", tmp_path / "none")
        assert (found, out) == (code, "") and said in err and "Traceback" not in err and err.count("\n") == 1, err


def test_a_push_without_the_right_is_a_line_and_does_not_tell_the_token(run, pixelspace, hub):
    code, out, err = pixelspace("push", run, "me/other", "--licence", "mit", token="hf_wrong")
    assert (code, out) == (6, "") and "hf://me/other" in err and "hf_wrong" not in err and err.count("\n") == 1, err
    assert "me/other" not in hub.commits


def test_a_damaged_file_of_the_hub_is_named(pushed, hub, pixelspace, tmp_path):
    bad = bytearray(pushed["model.safetensors"])
    bad[-5] ^= 1
    hub.commits["me/bad"] = [{**pushed, "model.safetensors": bytes(bad)}]
    code, _, err = pixelspace("sample", "hf://me/bad", "--out", tmp_path / "none")
    assert code == 4 and "model.safetensors" in err and "is damaged" in err
    hub.commits["me/empty"] = [{"README.md": b"nothing"}]
    code, _, err = pixelspace("sample", "hf://me/empty", "--out", tmp_path / "none")
    assert code == 4 and "holds no MANIFEST.json, so it is no model that pixelspace pushed there" in err


def _report(folder, value, **images):
    data = {name: None for name in ("reference", "networks", "notes", "software")}
    data |= {"protocol": {"name": "quick"}, "fingerprint": "6a50fbcb2921", "images": {"count": 1000, **images}}
    numbers = [{"name": "FD-Lite0", "value": value, "better": "lower", "details": {}}]
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({**data, "numbers": numbers}))


def test_only_numbers_of_these_very_weights_stand_on_the_card(run):
    (stage,) = (path.parent for path in run.glob("*/metrics.jsonl"))
    _report(run / "evaluations/now", 12.5, **{"weights sha256": ps.load(run, device="cpu").sha256, "source": str(run)})
    _report(run / "evaluations/before", 77.25, **{"weights sha256": "0" * 64})
    _report(stage / "evaluation/quick/0000000032", 33.125)  # by an evaluator of the stage, at the last image
    _report(stage / "evaluation/quick/0000000016", 44.75)
    (loss,) = (row["loss"] for row in read_metrics(stage, "validation") if row["images"] == 32)
    card = ps.load(run, device="cpu").card("me/faces", "apache-2.0")
    assert "| quick [6a50fbcb2921] | 1000 | FD-Lite0 | 12.5 | lower |" in card
    assert "| quick [6a50fbcb2921] | 1000 | FD-Lite0 | 33.125 | lower |" in card
    assert f"| objective of the training | held out | loss | {loss:.5g} | lower |" in card
    assert "77.25" not in card and "44.75" not in card and str(run) not in card
    raw = ps.load(run, device="cpu", weights="raw").card("me/faces", "apache-2.0")
    assert "Nothing yet." in raw and "FD-Lite0" not in raw


@pytest.mark.parametrize("name", ["faces", "me/", "/faces", "me/fa ces", "me/../x", "me/a--b", "me/" + "x" * 96])
def test_names_that_the_hub_cannot_have_are_refused(name):
    with pytest.raises(UserError, match="expected user/name"):
        check_name(name)


@pytest.mark.parametrize("address", ["hf://me", "hf://me/../etc", "hf://me/a/b", "hf://me/a@", "hf://me/a@../b"])
def test_addresses_that_cannot_be_are_refused_before_anybody_is_asked(address):
    with pytest.raises(UserError, match="expected hf://user/name"), fetched(address):
        pass


def test_a_description_tells_no_place():
    told = {"type": "Folder", "path": "/home/me/pictures/", "names": None, "labels": "auto"}
    text = {"type": "Pretrained", "path": "google/t5-v1_1-xl", "length": 128}
    shards = {"type": "Shards", "path": "https://me:word@host/a/{00..10}.tar?key=1", "text_key": "txt"}
    found = without_places([{"source": told}, text, shards, {"type": "KLVAE", "vae": "~/vae.pth"}])
    assert found == [
        {"source": {**told, "path": "pictures"}},
        text,
        {**shards, "path": "{00..10}.tar"},
        {"type": "KLVAE", "vae": "vae.pth"},
    ]
