"""Plans as people ask for them: what is printed, what is refused."""

import json
import subprocess
import sys

import pytest

from tests.cli.conftest import DEBUG, refused

A100 = ("--devices", "4", "--memory", "80GB", "--flops", "312e12")


def test_help_needs_no_torch():
    asked = (
        "import sys\nfrom pixelspace.cli import main\ntry:\n    main(['plan', '--help'])\n"
        "except SystemExit:\n    print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert "--node-bandwidth" in said and said.endswith("False\n")


def test_a_plan_says_what_each_stage_and_all_of_them_take(cli):
    given = (*A100, "--mtbf", "10000", "--price", "2.5", "--samples", "1000")
    code, out, err = cli("plan", "maskdit-imagenet256-debug", *given)
    assert code == 0, err
    assert out.startswith(
        "maskdit-imagenet256-debug on 4 devices: 80.0 GB and 312 TFLOP/s each (156 in TF32, 19.5 in float32)\n"
    )
    assert out.count("\nstage ") == 2 and out.count(" <-\n") == 2
    words = ("none: copies (DDP)", "full: shared by all", "GFLOP", "images/s", "kept", "Young", "device-days, cost")
    assert all(word in out for word in words)
    assert "1,000 samples as loaders hand them over: 768.0 kB" in out
    assert "--set stages.1.micro=2 stages.1.checkpointing=false" in out


def test_json_has_all_numbers_in_base_units(cli):
    _, out, _ = cli("plan", DEBUG, *A100, "--price", "3.6", "--json")
    said = json.loads(out)
    (stage,) = said["stages"]
    assert said["machine"]["memory"] == 80e9 and said["machine"]["efficiency"] == 0.3
    assert said["total"]["seconds"] == stage["seconds"] and stage["best"] is None and said["data_bytes"] is None
    assert stage["price"] == pytest.approx(4 * stage["seconds"] * 3.6 / 3600)
    assert stage["training_seconds"] == pytest.approx(stage["work"]["images"] / stage["images_per_second"])
    assert stage["chosen"] in stage["layouts"]


def test_settings_change_the_plan_as_they_change_the_recipe(cli):
    def seconds(*more):
        return json.loads(cli("plan", DEBUG, *A100, "--json", *more)[1])["total"]["seconds"]

    assert seconds("--set", "stages.0.images=64") > 1.5 * seconds("--efficiency", "0.31")


@pytest.mark.parametrize("written", ["40 GiB", "4.294967296e10B"])
def test_sizes_are_read_as_people_write_them(cli, written):
    _, out, err = cli("plan", DEBUG, "--devices", "1", "--memory", written, "--flops", "312TFLOPS", "--json")
    assert json.loads(out)["machine"]["memory"] == 40 * 2**30, err
    assert json.loads(out)["machine"]["flops"] == 312e12


@pytest.mark.parametrize(
    ("flag", "written"),
    [
        ("memory", "80Gb"),
        ("memory", "eighty"),
        ("memory", "-80GB"),
        ("memory", "80iB"),
        ("flops", "312e"),
        ("bandwidth", "25GB/h"),
        ("write", "1,5GB"),
    ],
)
def test_sizes_that_cannot_be_read_are_refused(cli, flag, written):
    given = dict(zip(A100[::2], A100[1::2], strict=True)) | {f"--{flag}": written}
    asked = (f"{name}={text}" for name, text in given.items())
    refused(cli("plan", DEBUG, *asked), 2, f"--{flag}", f"cannot read '{written}'", "write it like")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("hdit-dmo", *A100), ["no recipe 'hdit-dmo'", "did you mean 'hdit-demo'?"]),
        (("hdit-demo", *A100, "--devices", "48"), ["48 cannot share the 64 lanes", "nearest 32 and 64"]),
        (("hdit-demo", *A100, "--devices", "128"), ["128 cannot share", "nearest 64;", "1, 2, 4, 8, 16, 32, 64"]),
        ((DEBUG, *A100, "--devices", "0"), ["devices and per_node must be at least 1, found 0"]),
        ((DEBUG, *A100, "--memory", "80"), ["80 bytes a device", "is a unit missing, as in 80GB?"]),
        ((DEBUG, *A100, "--memory", "1.1MB"), ["'train': no room", "GB a device", "take more devices", "--set"]),
        ((DEBUG, *A100, "--efficiency", "1.1"), ["efficiency must be in (0, 1], found 1.1"]),
        ((DEBUG, *A100, "--overlap", "nan"), ["overlap", "finite"]),
        ((DEBUG, *A100, "--mtbf", "1e-12"), ["would not get on", "set save_images to"]),
        ((DEBUG, *A100, "--samples", "0"), ["--samples must be at least 1, found 0"]),
        ((DEBUG, *A100, "--set", "stages.0.batchh=1"), ["did you mean 'batch'?"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(cli, asked, words):
    refused(cli("plan", *asked), 2, *words)
