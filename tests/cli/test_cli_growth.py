"""Growing by the command line: what it carries over, and what it refuses before anything is trained or written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pixelspace.cli import main
from pixelspace.nn.weights import digest
from pixelspace.store import read
from tests.cli.conftest import refused

GROWN, RELEASED = "greedy-cc12m-512-debug", "greedy-cc12m-512-unfrozen-debug"
SHORT = ("stages.*.images=8", "stages.*.validate_count=4", "stages.*.sample_count=1")  # two steps
RULE = {"type": "Rule"}


def settings(*given):
    return [word for one in given for word in ("--set", one)]


@pytest.fixture(scope="module")
def released_run(tmp_path_factory):
    """A core, grown, then released."""
    folder = tmp_path_factory.mktemp("released") / "run"
    assert main(["train", RELEASED, "--out", str(folder), "--quiet", *settings(*SHORT)]) == 0
    return folder


@pytest.fixture
def copy(released_run, tmp_path):
    """That run again, or only its first stages."""

    def made(stages: int = 3) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(released_run, folder)
        for path in sorted(folder.glob("[0-9]*"))[stages:]:
            shutil.rmtree(path)
        return folder

    return made


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rules(*given):
    return "stages.1.init.rules=" + json.dumps([{**RULE, **one} for one in given])


UNFIT = {
    "a rule that matches nothing": (
        ["stages.1.init.rules.0.into=cor.*"],
        ["stage 'grow-512' (from 'core-64')", "rule 'cor.*' covers nothing", "did you mean 'core.*'?", "head, levels"],
    ),
    "a rule behind one that takes all": (
        [rules({"into": "*", "fresh": True}, {"into": "core.*"})],
        ["rule 'core.*' covers nothing", "rules before it cover all its names"],
    ),
    "a name no rule covers": (
        [rules({"into": "core.*"}, {"into": "embed.*"})],
        ["patch.weight: no rule covers it, of 'core.*', 'embed.*'", 'add Rule("patch.*")', "fresh=True"],
    ),
    "no rule at all": (["stages.1.init.rules=[]"], ["stages.1.init", "rules is empty", 'Rule("*")']),
    "a name the source lacks": (
        [rules({"into": "*"})],
        ["patch.weight: rule '*' asks for 'patch.weight'", "did you mean 'shallow.patch.weight'?"],
    ),
    "a width that differs": (
        ["stages.1.backbone.core.width=32"],
        [
            "core.position",
            "(2, 2, 32) here and (2, 2, 64) in the source",
            "(core.position); give it Rule('core.position'",
        ],
    ),
    "a condition that differs": (
        ["stages.1.backbone.core.cond_width=32"],
        ["embed.time.0.weight", "(32, 256) here and (64, 256)", "before 'embed.*'"],
    ),
    "a grid that differs": (
        ["stages.1.backbone.core.grid=[4,4]", "stages.1.size=[64,64]"],
        ["core.position", "(4, 4, 64) here and (2, 2, 64)", 'add resize="position" to the rule'],
    ),
    "a size that the grid does not reach": (
        ["stages.1.size=[64,64]"],
        ["stages.1", "image height 64", "2 tokens, each of 16 pixels", "height must be 32", "levels, patch"],
    ),
    "a size that the core's own stage does not reach": (
        ["stages.0.size=[8,16]"],
        ["stages.0", "image width 16", "width must be 8"],
    ),
    "a source that is missing": (
        ["stages.1.init.stage=cor-64"],
        ["error: stage 'grow-512' inherits from 'cor-64'", "did you mean 'core-64'?"],
    ),
    "a source of another range of data": (
        [
            'stages.1.codec={"type":"KLVAE","vae":"nowhere.pth"}',
            "stages.1.backbone.channels=4",
            "stages.1.size=[256,256]",
        ],
        ["stage 'grow-512' works on KLVAE", "'core-64'", "another range of data (Pixels())", "the same codec"],
    ),
    "frozen names that are not there": (
        ['stages.1.freeze=["core.*","embd.*"]'],
        ["stage 'grow-512': freeze: 'embd.*' covers nothing", "did you mean 'embed.*'?", "head, levels, patch, seam"],
    ),
    "everything frozen": (
        ['stages.1.freeze=["core.*","*"]'],
        ["stage 'grow-512': freeze: 'core.*', '*' cover all", "leave some to learn", "head, levels, patch, seam"],
    ),
    "a rate for what is frozen": (
        ['stages.1.optimizer.groups=[{"type":"Group","names":"core.*"}]'],
        ["stage 'grow-512': optimizer.groups: 'core.*' covers nothing that learns", "head, levels"],
    ),
    "statistics for a seam that is not there": (
        ["stages.1.backbone.seam=none"],
        ["stage 'grow-512': init.match_images", "set backbone.seam to 'affine'"],
    ),
}


@pytest.mark.parametrize(("given", "words"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_refused_before_anything_is_trained_or_written(cli, given, words):
    refused(cli("train", GROWN, "--out", "r", "--quiet", *settings(*given)), 2, *words)
    assert not Path("r").exists()
    refused(cli("show", GROWN, *settings(*given)), 2, *words)


def test_what_does_not_fit_leaves_a_run_as_it_is(cli, copy):
    run = copy(1)
    before = contents(run)
    refused(cli("train", run, "--quiet", *settings('stages.1.freeze=["cor.*"]')), 2, "did you mean 'core.*'?")
    assert contents(run) == before


def test_a_stage_whose_source_has_no_checkpoint_is_refused(cli):
    refused(
        cli("train", GROWN, "--stage", "grow-512", "--out", "r", "--quiet"),
        4,
        *("r/00-core-64: stage 'core-64' has no checkpoint to inherit", "train it first", "'grow-512' by --from"),
    )
    assert not Path("r").exists()


def test_a_stage_whose_source_is_unfinished_is_refused(cli, copy):
    run = copy(1)
    before = contents(run)
    again = ("train", run, "--stage", "grow-512", "--quiet", "--accept-changes", *settings("stages.0.images=16"))
    refused(cli(*again), 2, "'core-64'", "stands at 8 of 16 images", "train it to its end first", "step-00000002")
    assert contents(run) == before


def test_weights_of_another_range_of_data_or_another_network_are_refused(cli, golden, golden_json, released_run):
    torch.save({"ema": golden("maskdit/tiny_state_dict"), "model": {}}, "latents.pt")
    Path("config.json").write_text(json.dumps(golden_json("maskdit/tiny_state_dict")["config"]))
    assert cli("import", "latents.pt", "m", "--system", "maskdit", "--config", "config.json")[0] == 0
    given = ("train", GROWN, "--quiet", "--stage")
    words = "stage 'grow-512' works on Pixels", "m learnt another range of data (KLVAE)"
    refused(cli(*given, "grow-512", "--from", "m", "--out", "r"), 2, *words)
    words = f"stage 'core-64' from {released_run}", "another architecture", "shallow.decoder"
    refused(cli(*given, "core-64", "--from", released_run, "--out", "r2"), 4, *words)


def test_releasing_at_a_count_that_is_passed_is_refused(cli, copy):
    run = copy()
    before = contents(run)
    earlier, later = settings("stages.1.images=4"), settings("stages.1.images=16")
    words = "stage 'grow-512' has seen 8 images", "nor its heir begin, at 4", "the nearest is 8"
    refused(cli("train", run, "--quiet", *earlier), 2, *words)
    refused(cli("train", run, "--quiet", "--accept-changes", *earlier), 2, *words)
    words = "stage 'grow-512' stands at 8 of 16 images", "'joint-512'", "has seen 8", "set stages.1.images to 8"
    refused(cli("train", run, "--quiet", "--accept-changes", *later), 2, *words)
    words = "stage 'core-64' stands at 8 of 16 images", "'grow-512'", "set stages.0.images to 8"
    refused(cli("train", run, "--quiet", "--accept-changes", *settings("stages.0.images=16")), 2, *words)
    assert contents(run) == before
    assert cli("train", run, "--quiet")[0] == 0


def test_what_is_frozen_or_inherited_stays_so_once_a_stage_has_begun(cli, copy):
    run = copy(2)
    before = contents(run)
    for setting, path in (
        ('stages.1.freeze=["core.*"]', "stages.1.freeze"),
        ("stages.1.init.weights=raw", "stages.1.init.weights"),
        ('stages.1.optimizer.groups=[{"type":"Group","names":"seam.*"}]', "stages.1.optimizer.groups"),
    ):
        result = cli("train", run, "--quiet", "--accept-changes", *settings(setting))
        refused(result, 2, f"{path}: ", "set them back or start anew with another --out")
        assert "or add --accept-changes" not in result[2]
    assert {path: data for path, data in contents(run).items() if path.name != "error.log"} == before


def test_a_stage_that_has_not_begun_may_be_planned_anew(cli, copy):
    run = copy(2)
    anew = settings(
        "stages.2.optimizer.groups.0.lr_factor=0.5", "stages.2.images=4", 'stages.2.freeze=["embed.time.*"]'
    )
    anew += settings("stages.2.optimizer.groups.1.names=embed.text.*")
    code, _, err = cli("train", run, "--quiet", *anew)
    assert code == 0, err
    assert [path.name for path in run.glob("02-joint-512/checkpoints/*")] == ["step-00000001"]


def test_a_grown_run_is_shown_sampled_and_reports_what_it_carried(cli, released_run):
    grown, joint = (json.loads(path.read_text()) for path in sorted(released_run.glob("*/transfer.json")))
    assert grown["source"] == "core-64" and all(name.startswith(("core.", "embed.")) for name in grown["copied"])
    assert {name.partition(".")[0] for name in grown["fresh"]} == {"patch", "levels", "seam", "head"}
    assert {name.partition(".")[0] for name in grown["unused"]} == {"shallow"}
    assert joint["source"] == "grow-512" and not joint["fresh"] and not joint["unused"]
    code, out, _ = cli("show", released_run)
    assert code == 0
    copied, fresh, unused = (len(grown[way]) for way in ("copied", "fresh", "unused"))
    for words in (f"inherited, {copied} tensors", f"fresh, {fresh} tensors", f"unused, {unused} tensors"):
        assert words in out
    assert out.count("frozen: core.*, embed.*") == 1 and "warning" not in out
    assert cli("sample", released_run, "--text", "red apple", "--steps", "2", "--out", "s", "--quiet")[0] == 0
    assert json.loads(Path("s/metadata.jsonl").read_text()) == {"file_name": "000000.png", "text": "red apple"}


def test_a_core_from_elsewhere_is_carried_by_the_stage_s_rules(cli, released_run):
    source = released_run / "00-core-64"
    code, _, err = cli(
        *("train", GROWN, "--stage", "grow-512", "--from", source, "--out", "r", "--quiet", *settings(*SHORT))
    )
    assert code == 0 and f"grow-512 from {source}: " in err
    report = json.loads(Path("r/01-grow-512/transfer.json").read_text())
    assert report["source"] == str(source) and set(report["copied"]) == set(report["copied"].values())
    ema = read(source / "checkpoints/step-00000002", kind="checkpoint", parts=["ema"]).parts["ema"]
    kept = {name: tensor for name, tensor in ema.items() if name.startswith(("core.", "embed."))}
    assert report["copied_sha256"] == digest(kept)
    trained = read(Path("r/01-grow-512/checkpoints/step-00000002"), kind="checkpoint", parts=["model", "ema"]).parts
    for weights in trained.values():
        assert digest({name: weights[name] for name in kept}) == digest(kept)


def test_a_patch_too_large_for_noise_is_warned_of_in_one_line(cli):
    narrow = settings(*SHORT, "stages.*.backbone.widths=[12]", "stages.*.size=[8,8]", "stages.*.images=4")
    code, _, err = cli("train", "greedy-cc12m-512-scratch-debug", "--out", "r", "--quiet", *narrow)
    (line,) = [line for line in err.splitlines() if "warning" in line]
    assert code == 0 and line.startswith("warning: stage 'grow-512': 12 values of the image become 12 numbers")
    assert "VPV predicts" in line and "predict the image (X0)" in line
    _, out, _ = cli("show", "greedy-cc12m-512-scratch-debug", *narrow)
    assert f"  {line}" in out.splitlines()


def test_the_list_of_recipes_says_whose_sizes_they_are(cli):
    lines = cli("recipes")[1].splitlines()
    for name in ("greedy-cc12m-512 ", "vermeer-8b "):
        (line,) = [line for line in lines if line.startswith(name)]
        assert "ours" in line and len(line) <= 120
