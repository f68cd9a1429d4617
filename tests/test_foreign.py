import argparse
import codecs
import io
import os
import pickle
import random
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pixelspace.errors import CheckpointError
from pixelspace.foreign import Arguments, Array, read_numpy_pickle, read_pickle, read_safetensors


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_keeps_the_arguments_of_its_command(tmp_path):
    path = tmp_path / "2000000.pt"
    args = argparse.Namespace(config="a.yaml", seed=3, inner=argparse.Namespace(lr=1e-4))
    torch.save({"model": {"w": torch.arange(3)}, "args": args}, path)
    read = read_pickle(path)
    assert torch.equal(read["model"]["w"], torch.arange(3))
    assert type(read["args"]) is Arguments and read["args"].values["seed"] == 3
    assert read["args"].values["inner"].values == {"lr": 1e-4}


@pytest.mark.parametrize("where", ["in it", "in place of its dictionary", "called with it"])
def test_arguments_run_nothing(tmp_path, where):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            malice = Malice(canary)
            if where == "in it":
                return argparse.Namespace, (), {"a": malice}
            return (argparse.Namespace, (), [malice]) if where != "called with it" else (argparse.Namespace, (malice,))

    torch.save({"args": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"evil.pt: (holds more than tensors|not readable)"):
        read_pickle(path)
    assert not canary.exists()


@pytest.mark.parametrize("state", [1, [1], (1, 2), ({}, {"values": 1})])
def test_arguments_are_filled_with_a_dictionary_only(tmp_path, state):
    class Odd:
        def __reduce__(self):
            return argparse.Namespace, (), state

    torch.save({"args": Odd()}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd.pt.*expected a dictionary, found (int|list|tuple)"):
        read_pickle(tmp_path / "odd.pt")


def test_nothing_but_the_one_error_comes_of_damaged_files(tmp_path):
    path, draw = tmp_path / "x.pt", random.Random(0)
    weights = {"model": {"w": torch.randn(4, 4)}, "args": argparse.Namespace(a=1), "step": 3}
    wholes = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(weights, file, _use_new_zipfile_serialization=zipped)
        wholes.append(file.getvalue())
    for i in range(400):
        data = bytearray(wholes[i % 2])
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.randrange(len(data))] if i % 5 == 0 else data)
        try:
            read_pickle(path)
        except CheckpointError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


def test_absent_and_damaged_files_are_named(tmp_path):
    for read in (read_pickle, read_safetensors):
        with pytest.raises(CheckpointError, match=r"nowhere: no such file"):
            read(tmp_path / "nowhere")
        with pytest.raises(CheckpointError, match="is a folder, not a file"):
            read(tmp_path)
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(3)}, path, {"config": "{}"})
    weights, metadata = read_safetensors(path)
    assert torch.equal(weights["w"], torch.ones(3)) and metadata == {"config": "{}"}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        read_safetensors(path)


NUMBERS = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "big-endian": np.arange(4, dtype=">i4"),
    "bytes": np.arange(5, dtype=np.uint8),
    "strided": np.arange(10.0)[::3],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_are_read_from_pickles_of_every_protocol(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"n": 3, "arrays": NUMBERS}, protocol))
    read = read_numpy_pickle(tmp_path / "a.pkl")
    assert read["n"] == 3
    for name, array in NUMBERS.items():
        assert isinstance(read["arrays"][name], Array)
        np.testing.assert_array_equal(read["arrays"][name].tensor.numpy(), array)


def test_arrays_in_a_checkpoint_are_read_on_request_only(tmp_path):
    torch.save({"mu": NUMBERS["transposed"]}, tmp_path / "a.pt")
    np.testing.assert_array_equal(read_pickle(tmp_path / "a.pt", arrays=True)["mu"].tensor, NUMBERS["transposed"])
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values"):
        read_pickle(tmp_path / "a.pt")


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Calls(os.system, "touch canary"), "asks for posix.system"),
        (Calls(eval, "open('canary', 'w')"), "asks for builtins.eval"),
        (Calls(getattr, "", "join"), "asks for builtins.getattr"),
        (Calls(codecs.encode, "a", "rot13"), "something else than text as latin1"),
        (np.array([{}], dtype=object), "an array of 'O8', not of numbers"),
        (np.array(["a"]), "an array of 'U1', not of numbers"),
        (np.zeros(1, dtype=[("a", "f4")]), "an array of 'V4', not of numbers"),
        (argparse.Namespace(a=1), "asks for argparse.Namespace"),
    ],
)
def test_a_pickle_of_more_than_arrays_is_refused(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps([content], 3))
    with pytest.raises(CheckpointError, match=f"evil.pkl: not a pickle of NumPy arrays .*{said}") as error:
        read_numpy_pickle(tmp_path / "evil.pkl")
    assert "\n" not in str(error.value) and not (tmp_path / "canary").exists()


def test_nothing_but_the_one_error_comes_of_damaged_pickles(tmp_path):
    path, draw = tmp_path / "x.pkl", random.Random(0)
    wholes = [pickle.dumps({"n": 3, "arrays": NUMBERS}, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for i in range(1500):
        data = bytearray(wholes[i % len(wholes)])
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.randrange(len(data))] if i % 5 == 0 else data)
        try:
            read_numpy_pickle(path)
        except CheckpointError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


def test_a_pickle_cannot_ask_for_memory_that_it_does_not_fill(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04Kar\xff\xff\xff\xff.")  # remembers 97 under the number 2^32 - 1
    tracemalloc.start()
    assert read_numpy_pickle(path) == 97
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
