"""Pyramids by the command line: trained stage by stage, and what does not fit refused before anything is trained."""

import json

import pytest
from safetensors.torch import save_file

import pixelspace as ps
from pixelspace.cli import main
from tests.cli.conftest import refused

RECIPE = "mdm-cc12m-debug"
SHORT = ("stages.*.images=8", "stages.*.validate_count=4", "stages.*.sample_count=1", "stages.*.sampling.steps=2")


def settings(*given):
    return [word for one in given for word in ("--set", one)]


@pytest.fixture(scope="module")
def run_of_three(tmp_path_factory):
    """Three stages, two steps each."""
    folder = tmp_path_factory.mktemp("pyramid") / "run"
    assert main(["train", RECIPE, "--out", str(folder), "--quiet", *settings(*SHORT)]) == 0
    return folder


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stages.1.size=[18,18]", ["stages.1: image height 18", "multiple of 4", "16 and 20"]),
        ("stages.2.objective.weights=[16,4]", ["weights must be one for each of the levels (1, 2, 4)", "(16.0, 4.0)"]),
        ("stages.1.objective.mixed=[2,1,1]", ["mixed must be one for each of the levels (1, 2)", "(2, 1, 1)"]),
        (
            "stages.2.objective.pyramid.factors=[1,2]",
            ["objective.pyramid.factors (1, 2)", "has (1, 2, 4)", "set it so"],
        ),
        ("stages.1.objective.pyramid.factors=[1,3,4]", ["each be a multiple of the one before", "(1, 3, 4)"]),
        ("stages.1.objective.pyramid.tiles=2", ["pyramid.tiles 2", "for 1 x 1 frames"]),
        ("stages.1.init.stage=mdm-128", ["'mdm-128', which does not come before it", "did you mean 'mdm-64'"]),
        (
            "stages.2.init.stage=mdm-64",
            ["stage 'mdm-1024' (from 'mdm-64')", "its network has levels (1,), this one (1, 2, 4)"],
        ),
        ('stages.1.freeze=["inner.*"]', ["stage 'mdm-256'", "'inner.*'", "inner_unet"]),
        ("stages.2.sampling.threshold=klip", ["stages.2.sampling.threshold", "'klip'"]),
    ],
)
def test_levels_that_do_not_fit_each_other_are_refused_in_one_line(cli, setting, words):
    refused(cli("show", RECIPE, *settings(setting)), 2, *words)


def test_show_tells_all_three_networks(cli):
    code, out, _ = cli("show", RECIPE)
    assert code == 0 and out.count("NestedUNet") == 2
    for stage in ("stage mdm-64: 8x8", "stage mdm-256: 16x16", "stage mdm-1024: 32x32", "(ema weights)"):
        assert stage in out


def test_a_stage_without_the_one_inside_it_is_refused(cli, tmp_path):
    refused(cli("train", RECIPE, "--stage", "mdm-256", "--quiet"), 4, "stage 'mdm-64' has no checkpoint", "--from")
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_number_of_levels_are_refused_and_of_one_less_taken(cli, run_of_three, tmp_path):
    ps.load(run_of_three / "00-mdm-64", device="cpu").save("low")
    ps.load(run_of_three / "02-mdm-1024", device="cpu").save("high")
    short = settings(*SHORT)
    refused(
        cli("train", RECIPE, "--stage", "mdm-256", "--from", "high", "--out", "a", "--quiet", *short),
        2,
        "stage 'mdm-256' from high",
        "levels (1, 2, 4), this one (1, 2)",
    )
    assert cli("train", RECIPE, "--stage", "mdm-256", "--from", "low", "--out", "b", "--quiet", *short)[0] == 0
    report = json.loads((tmp_path / "b/01-mdm-256/transfer.json").read_text())
    assert all(source == name.removeprefix("inner_unet.") for name, source in report["copied"].items())
    refused(cli("sample", "high", "--size", "18", "-n", "1"), 2, "image height 18", "multiple of 8", "16 and 24")


def test_a_configuration_of_another_number_of_levels_than_the_weights_is_refused(cli, golden, golden_json, tmp_path):
    stored = golden("mdm/nested2_text")
    weights = {name.removeprefix("sd."): tensor for name, tensor in stored.items() if name.startswith("sd.")}
    save_file(weights, tmp_path / "two.safetensors")
    config = golden_json("mdm/unet_text")["config"]
    (tmp_path / "one.json").write_text(json.dumps(config))
    result = cli("import", "two.safetensors", "out", "--system", "ml-mdm", "--config", "one.json")
    refused(result, 2, "config: describes 1 levels, and the weights are of 2")
    assert not (tmp_path / "out").exists()


def test_frames_that_do_not_fill_the_grid_are_refused(cli):
    result = cli("show", "mdm-clips", *settings("stages.1.data.source.frames=15"))
    refused(result, 2, "stage 'clips-16'", "a grid of 4 x 4 frames", "has 15; set data.source.frames to 16")
