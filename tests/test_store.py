import errno
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pixelspace import store
from pixelspace.errors import CheckpointError, ResourceError, UserError
from pixelspace.store.folders import locked

STATE = {"step": 7, "lr": 1e-4 / 3, "tags": ["a", "ü", None], "nested": {"b": True}}


def make_parts():
    rand = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=rand)
    return {
        "model": {
            "z.weight": base,
            "a.weight": base[1:3, ::2],
            "transposed": base.t(),
            "tied": base,
            "half": torch.randn(5, generator=rand).half(),
            "brain": torch.randn(3, 5, generator=rand).bfloat16(),
            "eighth": torch.randn(7, generator=rand).to(torch.float8_e4m3fn),
            "double": torch.randn(2, generator=rand, dtype=torch.float64).requires_grad_(),
            "flags": torch.tensor([True, False, True]),
            "empty": torch.empty(0, 3),
            "expanded": torch.tensor([2.5]).expand(4),
        },
        "optimizer": {
            "z.weight.step": torch.tensor(7.0),
            "z.weight.exp_avg": torch.full((6, 8), -0.0),
            "count": torch.tensor(-3, dtype=torch.int64),
        },
        "nothing": {},
    }


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    return store.publish(tmp_path_factory.mktemp("published") / "model", make_parts(), STATE, kind="test")


@pytest.fixture
def folder(published, tmp_path):
    return Path(shutil.copytree(published, tmp_path / "model"))


@pytest.fixture(scope="session")
def published_one(tmp_path_factory):
    parts = {"model": {"x": torch.ones(1)}}
    return store.publish(tmp_path_factory.mktemp("published") / "one", parts, {}, kind="test")


@pytest.fixture
def one(published_one, tmp_path):
    """A store folder of one number."""
    return Path(shutil.copytree(published_one, tmp_path / "one"))


def read(folder, **options):
    return store.read(folder, kind="test", **options)


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(found[name]) == bits(tensor), name


def seal(folder, change=lambda data: None):
    """Makes MANIFEST.json say what lies there, then applies `change`, with all hashes right: what a stranger can do."""
    path = folder / "MANIFEST.json"
    data = json.loads(path.read_text())
    for name, entry in data["files"].items():
        content = (folder / name).read_bytes()
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    change(data)
    del data["sha256"]
    digest = hashlib.sha256((json.dumps(data) + "\n").encode()).hexdigest()
    path.write_text(json.dumps({**data, "sha256": digest}) + "\n")


# What goes in comes out ----------------------------------------------------------------------------------------------


def test_every_kind_of_tensor_comes_back_bit_for_bit(folder):
    contents = read(folder)
    assert contents.state == STATE
    for part, tensors in make_parts().items():
        assert_equal(contents.parts[part], tensors)
    assert contents.nonfinite == ()


def test_loaded_tensors_own_their_memory_and_can_be_written_to(folder):
    tensors = read(folder).parts["model"]
    tensors["tied"].zero_()
    tensors["expanded"][0] = 1
    assert_equal({"z.weight": tensors["z.weight"]}, {"z.weight": make_parts()["model"]["z.weight"]})


def test_only_the_parts_asked_for_are_returned(folder):
    assert read(folder, parts=["optimizer"]).parts.keys() == {"optimizer"}
    with pytest.raises(CheckpointError, match=r"no 'ema'; there is model, optimizer, nothing"):
        read(folder, parts=["ema"])


@pytest.mark.parametrize("part", make_parts())
def test_the_safetensors_library_reads_the_same(folder, part):
    assert_equal(load_file(folder / f"{part}.safetensors"), make_parts()[part])


def test_insertion_order_does_not_matter(folder, tmp_path):
    backwards = {part: dict(reversed(tensors.items())) for part, tensors in make_parts().items()}
    other = store.publish(tmp_path / "other", backwards, STATE, kind="test")
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_tensors_that_are_not_finite_are_listed(tmp_path, dtype, bad):
    tensors = {"good": torch.ones(9), "bad": torch.tensor([0, bad, 1]).to(dtype)}
    path = store.publish(tmp_path / "model", {"model": tensors}, {}, kind="test")
    assert read(path).nonfinite == ("model/bad",)


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_stored_as_those_on_the_cpu(folder, tmp_path):
    parts = {
        part: {name: tensor.detach().cuda() for name, tensor in tensors.items()}
        for part, tensors in make_parts().items()
    }
    parts["model"]["transposed"] = parts["model"]["z.weight"].t()
    other = store.publish(tmp_path / "other", parts, STATE, kind="test")
    assert (folder / "MANIFEST.json").read_bytes() == (other / "MANIFEST.json").read_bytes()


def test_a_folder_needs_no_write_permission_to_be_read(folder):
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert read(folder).state == STATE
    folder.chmod(0o755)


# Damage --------------------------------------------------------------------------------------------------------------

FILES = ["MANIFEST.json", "state.json", "model.safetensors", "optimizer.safetensors", "nothing.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_every_cut_and_every_surplus_byte_is_found_and_its_file_named(folder, name):
    good = (folder / name).read_bytes()
    lengths = {0, len(good) - 1, *random.Random(1).sample(range(len(good)), min(64, len(good)))}
    for bad in [*(good[:n] for n in sorted(lengths)), good + b"\0", good + b"\n"]:
        (folder / name).write_bytes(bad)
        for check in (store.read, store.verify):
            with pytest.raises(CheckpointError, match=name):
                check(folder, kind="test")


def tensor_at(data, at):
    size = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + size]).items():
        begin, end = entry.get("data_offsets", (0, 0))
        if begin <= at - 8 - size < end:
            return name
    return None


def test_every_flipped_bit_is_found_and_its_file_and_tensor_named(folder):
    rand = random.Random(2)
    good = {name: (folder / name).read_bytes() for name in FILES}
    places = [(name, at) for name in FILES for at in range(len(good[name]))]
    for name, at in rand.sample(places, 1000):
        bad = bytearray(good[name])
        bad[at] ^= 1 << rand.randrange(8)
        (folder / name).write_bytes(bad)
        tensor = tensor_at(good[name], at) if name.endswith(".safetensors") else None
        with pytest.raises(CheckpointError, match=f"{name}: {tensor}" if tensor else name):
            read(folder)
        (folder / name).write_bytes(good[name])
    assert read(folder).state == STATE


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: absent"):
        store.verify(folder, kind="test", sizes_only=True)


def test_a_surplus_file_is_named(folder):
    (folder / "ema.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: not in the manifest"):
        read(folder)


@pytest.mark.parametrize("name", FILES)
def test_only_regular_files_are_opened(folder, name, tmp_path):
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"{name}: is a symlink"):
        read(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}: expected a regular file"):
        read(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: expected a regular file"):
        read(folder)


def test_an_absent_folder_and_a_folder_of_something_else_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json: absent, so this is no complete test"):
        read(tmp_path)


# Hostile manifests ---------------------------------------------------------------------------------------------------


def test_a_resealed_manifest_is_as_good_as_ours(folder):
    seal(folder)
    assert read(folder).state == STATE


def test_a_newer_format_is_refused_with_both_versions(folder):
    seal(folder, lambda data: data.update(format=store.PIECES + 1, library="9.9"))
    with pytest.raises(
        CheckpointError, match=r"format 3, written by pixelspace '9\.9'; this is pixelspace .* formats up to 2"
    ):
        read(folder)


def test_another_kind_is_refused(folder):
    with pytest.raises(CheckpointError, match="holds a 'test'; expected a 'checkpoint'"):
        store.read(folder, kind="checkpoint")


def files(name, **entry):
    return lambda data: data["files"].update({name: {"bytes": 2, "sha256": "0" * 64, **entry}})


def tensor(**entry):
    return lambda data: data["tensors"]["model"]["half"].update(entry)


def renamed(name):
    return lambda data: data["tensors"]["model"].update({name: data["tensors"]["model"].pop("half")})


MANIFESTS = {
    "a file one folder up": files("../escape"),
    "an absolute file": files("/etc/passwd"),
    "a part one folder up": lambda data: data["tensors"].update({"../escape": {}}),
    "a part one folder up with its file": lambda data: (
        data["tensors"].update({"../model": {}}),
        files("../model.safetensors")(data),
    ),
    "a file of no part": files("more.safetensors"),
    "itself": files("MANIFEST.json"),
    "a part without its file": lambda data: data["tensors"].update(more={}),
    "no state": lambda data: data["files"].pop("state.json"),
    "negative bytes": lambda data: data["files"]["state.json"].update(bytes=-1),
    "bytes as text": lambda data: data["files"]["state.json"].update(bytes="22"),
    "bytes as a float": lambda data: data["files"]["state.json"].update(bytes=22.0),
    "huge bytes": lambda data: data["files"]["state.json"].update(bytes=10**30),
    "short hash": lambda data: data["files"]["state.json"].update(sha256="00"),
    "no hash": lambda data: data["files"]["state.json"].pop("sha256"),
    "a name with a slash": renamed("../../x"),
    "a name with NUL": renamed("x\0y"),
    "a name with a newline": renamed("half\n"),
    "an empty name": renamed(""),
    "the metadata's name": renamed("__metadata__"),
    "another name": renamed("quarter"),
    "another dtype of the same size": tensor(dtype="BF16"),
    "an unknown dtype": tensor(dtype="F7"),
    "another shape of the same size": tensor(shape=[5, 1]),
    "a larger shape": tensor(shape=[6]),
    "a negative shape": tensor(shape=[-5]),
    "a huge shape": tensor(shape=[2**62, 2**62]),
    "a huge empty shape": tensor(shape=[0, 2**62, 2**62]),
    "a shape of many dimensions": tensor(shape=[1] * 100),
    "a shape of truth": tensor(shape=[True]),
    "a field too many": tensor(offset=0),
    "another checksum": tensor(crc32=1),
    "a swap of two files": lambda data: data["files"].update(
        {
            "nothing.safetensors": data["files"]["optimizer.safetensors"],
            "optimizer.safetensors": data["files"]["nothing.safetensors"],
        }
    ),
    "format 0": lambda data: data.update(format=0),
    "format true": lambda data: data.update(format=True),
    "no format": lambda data: data.pop("format"),
    "kind as a list": lambda data: data.update(kind=["test"]),
    "no tensors": lambda data: data.update(tensors=None),
    "tensors in a list": lambda data: data["tensors"].update(model=[1]),
    "a key too many": lambda data: data.update(note="x"),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_hostile_manifest_is_refused(folder, change):
    seal(folder, change)
    for check in (store.read, store.verify):
        with pytest.raises(CheckpointError, match=r"MANIFEST\.json|\.safetensors"):
            check(folder, kind="test")


TEXTS = {
    "nothing": b"",
    "not UTF-8": b"\xff\xfe",
    "a list": b"[1]\n",
    "NaN": b'{"format": NaN}\n',
    "a key twice": b'{"format": 1, "format": 1}\n',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a long number": b'{"format": ' + b"9" * 10_000 + b"}\n",
    "too long": b" " * (store.MAX_JSON + 1),
    "many keys": b"{" + b",".join(b'"%d":0' % i for i in range(200_000)) + b"}\n",
    "spaced otherwise": None,
}


ALLOWED = {("state.json", "many keys"), ("state.json", "spaced otherwise")}  # any JSON object does as a state


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in ("MANIFEST.json", "state.json") for case in TEXTS if (name, case) not in ALLOWED],
)
def test_hostile_json_is_refused(folder, name, case):
    text = TEXTS[case]
    if text is None:
        text = json.dumps(json.loads((folder / name).read_text()), indent=2).encode()
    (folder / name).write_bytes(text)
    if name == "state.json":
        seal(folder)
    with pytest.raises(CheckpointError, match=name):
        read(folder)


# Hostile tensor files, with a manifest that vouches for every byte ----------------------------------------------------


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "no bytes": b"",
    "seven bytes": b"\0" * 7,
    "zero length": safetensors(b"", b"1234"),
    "length of all ones": safetensors({"x": ENTRY}, b"1234", 2**64 - 1),
    "length 2^63": safetensors({"x": ENTRY}, b"1234", 2**63),
    "length 100 MB": safetensors({"x": ENTRY}, b"1234", 100 << 20),
    "length one more": safetensors({"x": ENTRY}, b"1234", 1 + len(json.dumps({"x": ENTRY}, separators=(",", ":")))),
    "a header over the limit": safetensors(b'{"x":1}' + b" " * store.MAX_HEADER, b"1234"),
    "no JSON": safetensors(b"\x80\x04N.", b"1234"),
    "a JSON list": safetensors([ENTRY], b"1234"),
    "deep JSON": safetensors(b"[" * 100_000),
    "the same name twice": safetensors(b'{"x":%b,"x":%b}' % ((json.dumps(ENTRY).encode(),) * 2), b"1234"),
    "overlap": safetensors({"x": ENTRY, "y": {**ENTRY, "data_offsets": [2, 6]}}, b"123456"),
    "one region twice": safetensors({"x": ENTRY, "y": ENTRY}, b"1234"),
    "a hole": safetensors({"x": {**ENTRY, "data_offsets": [4, 8]}}, b"12341234"),
    "offsets reversed": safetensors({"x": {**ENTRY, "data_offsets": [4, 0]}}, b"1234"),
    "offsets negative": safetensors({"x": {**ENTRY, "data_offsets": [-4, 0]}}, b"1234"),
    "offsets beyond the end": safetensors({"x": {**ENTRY, "data_offsets": [0, 400]}}, b"1234"),
    "offsets that overflow": safetensors({"x": {**ENTRY, "data_offsets": [0, 2**64]}}, b"1234"),
    "offsets as floats": safetensors({"x": {**ENTRY, "data_offsets": [0.0, 4.0]}}, b"1234"),
    "three offsets": safetensors({"x": {**ENTRY, "data_offsets": [0, 4, 8]}}, b"1234"),
    "no offsets": safetensors({"x": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "a shape that overflows": safetensors({"x": {**ENTRY, "shape": [2**32, 2**32]}}, b"1234"),
    "a negative shape": safetensors({"x": {**ENTRY, "shape": [-1]}}, b"1234"),
    "a shape as text": safetensors({"x": {**ENTRY, "shape": "1"}}, b"1234"),
    "another shape": safetensors({"x": {**ENTRY, "shape": [1, 1]}}, b"1234"),
    "another dtype": safetensors({"x": {**ENTRY, "dtype": "I32"}}, b"1234"),
    "no such dtype": safetensors({"x": {**ENTRY, "dtype": "O"}}, b"1234"),
    "another name": safetensors({"y": ENTRY}, b"1234"),
    "a name that climbs": safetensors({"../x": ENTRY}, b"1234"),
    "a name with NUL": safetensors({"x\0": ENTRY}, b"1234"),
    "a tensor too many": safetensors({"x": ENTRY, "y": {**ENTRY, "shape": [0], "data_offsets": [4, 4]}}, b"1234"),
    "a tensor too few": safetensors({}, b"1234"),
    "a bomb of metadata": safetensors({"__metadata__": {str(i): "x" * 99 for i in range(9999)}, "x": ENTRY}, b"1234"),
    "metadata of another kind": safetensors({"__metadata__": [1], "x": ENTRY}, b"1234"),
    "no metadata": safetensors({"x": ENTRY}, b"1234"),
    "a million names": safetensors(b"{" + b",".join(b'"%d":0' % i for i in range(1_000_000)) + b"}"),
    "bytes before the data": safetensors({"x": ENTRY}, b"\0001234"),
    "bytes after the data": safetensors({"x": ENTRY}, b"12345"),
    "a byte order mark": safetensors(b"\xef\xbb\xbf" + json.dumps({"x": ENTRY}).encode(), b"1234"),
}


@pytest.mark.parametrize("stated", ["the file's size", "the right size"])
@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_hostile_tensor_file_is_refused(one, content, stated):
    path = one / "model.safetensors"
    size = path.stat().st_size
    if stated == "the right size":  # so that the file itself is looked into
        content = content[:size].ljust(size, b" ")
    path.write_bytes(content)
    seal(one)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read(one)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def disguises(canary, folder):
    yield pickle.dumps(Canary(canary))
    yield pickle.dumps(Canary(canary), protocol=0)
    for legacy in (False, True):
        torch.save({"x": Canary(canary)}, folder / "saved", _use_new_zipfile_serialization=not legacy)
        yield (folder / "saved").read_bytes()
    with tarfile.open(folder / "tar", "w") as tar:
        tar.add(folder / "saved", "../../escape")
    yield (folder / "tar").read_bytes()
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.write(folder / "saved", "archive/data.pkl")
    yield (folder / "zip").read_bytes()
    good = (folder / "model" / "model.safetensors").read_bytes()
    yield good + pickle.dumps(Canary(canary))


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_disguise_runs_nothing(folder, tmp_path, name):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()  # the trap itself works
    canary.unlink()
    for content in list(disguises(canary, tmp_path)):
        (folder / name).write_bytes(content)
        if name != "MANIFEST.json":
            seal(folder)
        with pytest.raises(CheckpointError, match=name):
            read(folder)
    assert not canary.exists()


def test_a_tensor_larger_than_any_memory_is_refused(one):
    size, path = 2**40, one / "model.safetensors"
    header = safetensors(
        {"__metadata__": {"format": "pt"}, "x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    )
    text = header[8:] + b" " * (-len(header) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)

    def change(data):
        data["tensors"]["model"]["x"].update(shape=[size], dtype="U8")
        data["files"]["model.safetensors"]["bytes"] = 8 + len(text) + size

    seal(one, change)
    os.truncate(path, 8 + len(text) + size)  # a file of holes
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size // 2, hard))  # for machines that promise any amount of memory
    try:
        with pytest.raises(ResourceError, match="x: no memory for its"):
            read(one)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# What cannot be stored -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "ä", "a\n", "__metadata__"])
def test_a_tensor_name_of_other_letters_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="tensor name"):
        store.publish(tmp_path / "model", {"model": {name: torch.ones(1)}}, {}, kind="test")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["", "a/b", "..", "Model", "model\n"])
def test_a_part_name_of_other_letters_is_refused(tmp_path, part):
    with pytest.raises(UserError, match="part"):
        store.publish(tmp_path / "model", {part: {}}, {}, kind="test")


@pytest.mark.parametrize(
    "bad", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(), torch.ones(1, device="meta")]
)
def test_a_tensor_that_is_not_plain_numbers_is_refused(tmp_path, bad):
    with pytest.raises(UserError, match="model: x: cannot store"):
        store.publish(tmp_path / "model", {"model": {"x": bad}}, {}, kind="test")


LOOP = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "state", [[1], {"a": (1, 2)}, {1: 2}, {"a": float("nan")}, {"a": Path()}, {"a": LOOP}, {"a": "x" * store.MAX_JSON}]
)
def test_a_state_that_would_not_come_back_the_same_is_refused(tmp_path, state):
    with pytest.raises(UserError, match="state"):
        store.publish(tmp_path / "model", {}, state, kind="test")
    assert not any(tmp_path.iterdir())


# Places --------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_beside_a_published_folder(folder):
    assert list(folder.parent.iterdir()) == [folder]


def test_missing_parents_are_made(tmp_path):
    assert read(store.publish(tmp_path / "a" / "b" / "c", {}, STATE, kind="test")).state == STATE


def test_a_folder_is_never_overwritten_unasked(folder):
    with pytest.raises(UserError, match="exists already"):
        store.publish(folder, {}, {}, kind="test")
    assert read(folder).state == STATE


def test_a_store_folder_of_the_same_kind_is_replaced_on_request(folder):
    store.publish(folder, {"model": {"x": torch.ones(1)}}, {}, kind="test", replace=True)
    assert read(folder).parts["model"].keys() == {"x"}
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_or_absent_folder_can_be_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        assert read(store.publish(tmp_path / name, {}, STATE, kind="test", replace=True)).state == STATE


def test_what_is_not_ours_is_never_replaced(folder, tmp_path):
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    for place, kind in ((folder, "test"), (tmp_path / "file", "test"), (tmp_path / "link", "test"), (tmp_path, "test")):
        before = sorted(map(str, tmp_path.rglob("*")))
        with pytest.raises(UserError, match="not replaced"):
            store.publish(place, {}, {}, kind=kind, replace=True)
        assert sorted(map(str, tmp_path.rglob("*"))) == before
    (folder / "notes.txt").unlink()
    with pytest.raises(UserError, match="expected a 'other'"):
        store.publish(folder, {}, {}, kind="other", replace=True)


def test_a_replacement_killed_between_its_two_renames_loses_nothing(folder):
    folder.rename(folder.with_name(f".old-model-{'0' * 32}"))
    assert read(folder).state == STATE
    store.sweep(folder.parent, "*")
    assert read(folder).state == STATE
    store.publish(folder, {}, {"step": 8}, kind="test")
    store.sweep(folder.parent, "*")
    assert read(folder).state == {"step": 8}
    assert list(folder.parent.iterdir()) == [folder]


def test_sweep_deletes_stumps_of_the_dead_only_and_nothing_of_others(tmp_path):
    dead, deleted = tmp_path / f".tmp-model-{'a' * 32}", tmp_path / f".del-model-{'b' * 32}"
    alive, other = tmp_path / f".tmp-model-{'c' * 32}", tmp_path / f".tmp-else-{'d' * 32}"
    foreign, plain = tmp_path / f".del-model-{'e' * 32}", tmp_path / ".tmp-model-notes"
    for path in (dead, deleted, alive, other, foreign, plain):
        path.mkdir()
        (path / "model.safetensors").touch()
    (foreign / "thesis.tex").touch()
    with locked(alive):
        store.sweep(tmp_path, "model")
        assert set(tmp_path.iterdir()) == {alive, other, foreign, plain}
    assert list(foreign.iterdir()) == [foreign / "thesis.tex"]
    store.sweep(tmp_path, "model")
    assert set(tmp_path.iterdir()) == {other, foreign, plain}


def test_a_place_that_cannot_be_written_to_is_a_resource_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"file/runs/model: cannot save: .* bytes needed, .* free; see that"):
        store.publish(tmp_path / "file" / "runs" / "model", make_parts(), STATE, kind="test")


def test_a_file_size_limit_in_the_middle_of_a_save_is_a_resource_error_and_leaves_no_stump(folder):
    code = f"""
import resource, torch
from pathlib import Path
from pixelspace import store
from pixelspace.errors import ResourceError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path({str(folder.parent)!r})
try:
    store.publish(folder / "large", {{"model": {{"x": torch.ones(2**20)}}}}, {{}}, kind="test")
except ResourceError as error:
    assert "large: cannot save" in str(error) and "free some space" in str(error), error
    assert [path.name for path in folder.iterdir()] == ["model"], list(folder.iterdir())
    store.publish(folder / "small", {{"model": {{"x": torch.ones(2**10)}}}}, {{}}, kind="test")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    assert {path.name for path in folder.parent.iterdir()} == {"model", "small"}
    assert read(folder).state == STATE


@pytest.fixture
def disk(tmp_path):
    """A 4 MiB file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting takes root; the limit on file sizes above is the same fault for everybody")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_said_before_anything_is_written(disk):
    parts = {"model": {"x": torch.ones(2**18)}}  # 1 MiB
    good = store.publish(disk / "good", parts, STATE, kind="test")
    page, free = os.sysconf("SC_PAGE_SIZE"), shutil.disk_usage(disk).free
    for missing in range(32):
        (disk / "ballast").write_bytes(bytes(free - 2**20 - 8 * page + missing * page))
        with pytest.raises(ResourceError, match=r"new: cannot save: .*No space left.* 1,04.,... bytes needed, .* free"):
            store.publish(disk / "new", parts, STATE, kind="test")
        assert {path.name for path in disk.iterdir()} == {"good", "ballast"}
    assert read(good).state == STATE
    (disk / "ballast").unlink()
    store.publish(disk / "new", parts, STATE, kind="test")


class Filling(dict):
    """Tensors that are there, on a disk that somebody else fills while they are written."""

    def __init__(self, tensors, disk, left):
        super().__init__(tensors)
        self.disk, self.left = disk, left

    def __getitem__(self, name):
        with open(self.disk / "ballast", "ab") as file:
            file.write(bytes(max(shutil.disk_usage(self.disk).free - self.left, 0)))
        return super().__getitem__(name)


def test_a_disk_that_fills_up_during_a_save_costs_only_that_save(disk):
    tensors = {"x": torch.ones(2**16), "y": torch.ones(2**16)}
    good = store.publish(disk / "good", {"model": tensors}, STATE, kind="test")
    page = os.sysconf("SC_PAGE_SIZE")
    for left in range(0, 2**18 + 4 * page, 4 * page):
        with pytest.raises(ResourceError, match="No space left"):
            store.publish(disk / "new", {"model": Filling(tensors, disk, left)}, STATE, kind="test")
        assert {path.name for path in disk.iterdir()} == {"good", "ballast"}
        assert read(good).state == STATE
        (disk / "ballast").unlink()
    store.publish(disk / "new", {"model": tensors}, STATE, kind="test")


def test_a_read_only_disk_can_be_read_and_refuses_to_save(disk):
    good = store.publish(disk / "good", make_parts(), STATE, kind="test")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert read(good).state == STATE
    with pytest.raises(ResourceError, match="Read-only file system"):
        store.publish(disk / "new", make_parts(), STATE, kind="test")


def test_running_out_of_file_handles_is_no_damage(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)  # the lowest number there is, whatever other tests have left open
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(ResourceError, match=os.strerror(errno.EMFILE)):
            read(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read(folder).state == STATE
