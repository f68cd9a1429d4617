"""What is installed without the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, unpacked as pip does it; built of a copy, for building writes beside what it reads."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    for name in tracked.decode().split("\0"):
        if name.startswith("pixelspace/") or name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
            copy = folder / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(build, cwd=folder / "source", check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_it_holds_every_tracked_file_of_the_package(installed):
    tracked = subprocess.run(["git", "ls-files", "pixelspace"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert [name for name in tracked.stdout.split() if not (installed / name).is_file()] == []
    assert (installed / "pixelspace" / "py.typed").is_file()


def test_it_runs_without_the_repository(installed, tmp_path):
    program = (
        "import pixelspace; from pixelspace.data.emoji import Emoji; "
        "from pixelspace.cli import main; main(['recipes']); print(pixelspace.__file__, len(Emoji().open()))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    *_, last = ran.stdout.splitlines()
    assert last.startswith(str(installed)) and int(last.split()[-1]) > 100
    assert "hdit-demo" in ran.stdout
