"""What tests of the instruments share: a run of a network that has hardly learnt."""

import pytest

from pixelspace.cli import main


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed")
    assert main(["train", "hdit-imagenet128-debug", "--out", str(folder), "--quiet"]) == 0
    return folder
