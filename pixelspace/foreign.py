"""Other systems' files read as data, so that no code in them runs: safetensors, and PyTorch's pickles restricted to
tensors, plain containers and the command line's arguments that a training script keeps beside its weights."""

import argparse
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from pixelspace.errors import CheckpointError

# All that PyTorch's reader has been seen to raise on damaged files.
_READER_ERRORS = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile),
)


class Arguments:
    """What an `argparse.Namespace` held, by name, in `values`: an inert stand-in that a file can only fill."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"argparse.Namespace: expected a dictionary, found {type(state).__name__}")
        self.values = state


def _require(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}")


def _reason(error: Exception) -> str:
    """What the reader did not like, in one line, without PyTorch's advice to let the file run code."""
    said = str(error).rpartition("WeightsUnpickler error: ")[2].partition(" Please use")[0].strip()
    said = said.splitlines()[0] if said else type(error).__name__
    return said if said.isprintable() else repr(said)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata.

    Raises:
        CheckpointError: absent or damaged.
    """
    _require(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors: {_reason(error)}") from error


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; an `argparse.Namespace` in it becomes `Arguments`.

    Raises:
        CheckpointError: absent, damaged, or with anything but tensors, plain values and such arguments in it.
    """
    _require(path)
    stand_in = (Arguments, f"{argparse.Namespace.__module__}.{argparse.Namespace.__qualname__}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([stand_in]):
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, so it is not read: {_reason(error)}"
        ) from error
    except _READER_ERRORS as error:
        raise CheckpointError(f"{path}: not readable as a PyTorch checkpoint: {_reason(error)}") from error
