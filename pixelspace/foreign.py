"""Other systems' files read as data, so that no code in them runs: safetensors; PyTorch's pickles restricted to
tensors, plain containers and the command line's arguments that a training script keeps beside its weights; and plain
pickles restricted to NumPy arrays of numbers. NumPy itself never sees what a pickle says: stand-ins do."""

import argparse
import io
import math
import pickle
import struct
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from pixelspace.config import parse_json
from pixelspace.errors import CheckpointError

# All that PyTorch's reader has been seen to raise on damaged files.
_READER_ERRORS = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile),
)

_MAX_PICKLE = 4 << 30  # bytes; EDM2's statistics take 42 million
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")  # kinds of array that are read


class Arguments:
    """What an `argparse.Namespace` held, by name, in `values`: an inert stand-in that a file can only fill."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"argparse.Namespace: expected a dictionary, found {type(state).__name__}")
        self.values = state


class StandIn(Arguments):
    """What an object of a class that is not at hand held, by name, in `values`, but for what it was made with."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, dict) else {}


class _NumpyType:
    """Stands in for `numpy.dtype`."""

    code: Any = None
    order: Any = "="

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class Array:
    """Stands in for a NumPy array. `tensor` is None until the file has filled it with numbers."""

    tensor: Tensor | None = None

    def __init__(self, *_: Any) -> None:
        return  # what NumPy would be told here, the state says again

    def _fill(self, data: Any, dtype: Any, shape: Any, fortran: bool) -> None:
        if not (isinstance(dtype, _NumpyType) and dtype.code in _NUMBERS and dtype.order in ("<", ">", "=", "|")):
            raise pickle.UnpicklingError(f"an array of {getattr(dtype, 'code', dtype)!r:.40}, not of numbers")
        if not (isinstance(data, bytes | bytearray) and isinstance(shape, tuple)):
            raise pickle.UnpicklingError("an array without its numbers or its shape")
        stored = np.dtype(dtype.order + dtype.code)
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * stored.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of shape {shape!r:.80} in {len(data)} bytes")
        values = np.ndarray(shape, stored, bytes(data), order="F" if fortran else "C")
        self.tensor = torch.from_numpy(np.array(values, stored.newbyteorder("="), order="C"))

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self._fill(data, dtype, shape, bool(fortran))


class _BufferArray(Array):
    """Stands in for what pickles of protocol 5 make an array with."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self._fill(data, dtype, shape, order == "F")


class _Latin1:
    """Stands in for `codecs.encode`, which pickles of protocol 2 make bytes with."""

    def __new__(cls, text: Any, codec: Any) -> Any:
        if not isinstance(text, str) or codec != "latin1":
            raise pickle.UnpicklingError("_codecs.encode with something else than text as latin1")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("bytes with a state")


# Classes that take their state themselves, all of them: a pickle can set no attribute of theirs.
_NUMPY = {
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _BufferArray for core in ("core", "_core")},
    "numpy.ndarray": Array,
    "numpy.dtype": _NumpyType,
}


def _require(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}")


def one_line(error: Exception) -> str:
    """What a reader did not like, in one line, without PyTorch's advice to let the file run code."""
    said = str(error).rpartition("WeightsUnpickler error: ")[2].rpartition("from a trusted source.")[2]
    said = said.partition(" Please use")[0].strip()
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
        raise CheckpointError(f"{path}: not readable as safetensors: {one_line(error)}") from error


def read_state_dict(path: Path, of: str = "a network") -> dict[str, Tensor]:
    """The tensors by name in a .safetensors or in what `torch.save` wrote, on the CPU.

    Raises:
        CheckpointError: absent, damaged, with code in it, or not just tensors by name.
    """
    found = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise CheckpointError(f"{path}: expected the state dict of {of}: tensors by name")
    return found


def read_config(folder: Path, of: str = "a model in Hugging Face's layout") -> dict[str, Any]:
    """The config.json of a model's folder.

    Raises:
        CheckpointError: absent or not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no config.json; give the folder of {of}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def read_pickle(path: Path, *, arrays: bool = False, inert: Collection[str] = ()) -> Any:
    """What `torch.save` wrote, on the CPU; an `argparse.Namespace` in it becomes `Arguments`, with `arrays` a NumPy
    array of numbers becomes an `Array`, and whatever is of a module in the packages `inert` a `StandIn`.

    Raises:
        CheckpointError: absent, damaged, or with anything but tensors, plain values and such stand-ins in it.
    """
    _require(path)
    stand_ins: list[Any] = [(Arguments, f"{argparse.Namespace.__module__}.{argparse.Namespace.__qualname__}")]
    if arrays:
        stand_ins += [(cls, name) for name, cls in _NUMPY.items()]
    try:
        if inert and zipfile.is_zipfile(path):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            stand_ins += [(StandIn, name) for name in names if name.partition(".")[0] in inert]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, so it is not read: {one_line(error)}"
        ) from error
    except _READER_ERRORS as error:
        raise CheckpointError(f"{path}: not readable as a PyTorch checkpoint: {one_line(error)}") from error


class _Unpickler(pickle._Unpickler):  # the one in Python: in C's a file of ten bytes can ask for gigabytes
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "_codecs.encode":
            return _Latin1
        if full not in _NUMPY:
            raise pickle.UnpicklingError(f"asks for {full:.80}")
        return _NUMPY[full]


def read_numpy_pickle(path: Path) -> Any:
    """What `pickle.dump` wrote of plain values and NumPy arrays of numbers, which become `Array`.

    Raises:
        CheckpointError: absent, damaged, over 4 GiB, or with anything else in it.
    """
    _require(path)
    if (size := path.stat().st_size) > _MAX_PICKLE:
        raise CheckpointError(f"{path}: {size:,} bytes; a pickle of arrays can have {_MAX_PICKLE:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in its strings
            return _Unpickler(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as error:
        said = str(error) if str(error).isprintable() else repr(str(error))
        raise CheckpointError(
            f"{path}: not a pickle of NumPy arrays and plain values alone, so it is not read: {said}"
        ) from error
    except _READER_ERRORS as error:
        raise CheckpointError(f"{path}: not readable as a pickle of NumPy arrays: {one_line(error)}") from error
