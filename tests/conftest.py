"""What every test shares: the golden files, computed once with the original systems."""

import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line has it, and before torch starts its threads
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each process; so many threads as cores in each disturb one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported, by whichever test comes first

import pytest
import torch
from safetensors.torch import load_file

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    """The tensors of a golden file, by its path below tests/goldens without the suffix."""
    return lambda name: load_file(GOLDENS / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden_json() -> Callable[[str], dict]:
    """The description beside a golden file."""
    return lambda name: json.loads((GOLDENS / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
