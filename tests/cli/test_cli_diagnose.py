"""`pixelspace diagnose`."""

import json

from tests.cli.conftest import refused


def test_diagnose_tells_what_a_hardly_trained_run_lacks(cli, run_folder):
    code, out, _ = cli("diagnose", run_folder, "-n", "8", "--steps", "2")
    assert code == 0 and "untrained: it knows no more of images than mean and variance" in out
    assert "docs/diagnosis.md" in out


def test_diagnose_gives_its_numbers_as_json_too(cli, run_folder):
    code, out, _ = cli("diagnose", run_folder, "-n", "8", "--steps", "2", "--json")
    found = json.loads(out)
    assert code == 0 and len(found["sigmas"]) == 8 and len(found["averaged"][0]) == 8
    assert {"sign", "text"} == set(found["findings"][0]) and found["layers"][0]["dead"] == 0


def test_diagnose_refuses_what_it_cannot_look_at(cli, run_folder, pictures):
    refused(cli("diagnose", "nothing"), 4, "nothing", "no such file")
    refused(cli("diagnose", run_folder, "-n", "2"), 2, "from 8 to 10,000")
    refused(cli("diagnose", run_folder, "--data", "gone"), 3, "gone")
    refused(cli("diagnose", pictures), 4, str(pictures))
