"""Weights of metrics: found or explained, checked, and downloaded only when asked."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.evaluation.weights import Weights, WeightsFile, load_network, sha256_of

CONTENT = b"not really weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def weights_file(source="https://example.org/w.pth", sha256=DIGEST, name="w.pth"):
    return WeightsFile(name, source, len(CONTENT), sha256, "Apache-2.0", "and this")


@pytest.fixture
def served(tmp_path):
    (tmp_path / "server").mkdir()
    path = tmp_path / "server" / "w.pth"
    path.write_bytes(CONTENT)
    return path.as_uri()


@pytest.mark.parametrize("known", [DIGEST, DIGEST[:8], ""])
def test_a_file_that_is_there_is_found_by_its_whole_hash_its_beginning_or_none(tmp_path, known):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    assert Weights(tmp_path).find(weights_file(sha256=known)) == tmp_path / "w.pth"


def test_what_is_absent_is_explained_in_one_line_and_never_downloaded_unasked(tmp_path, served):
    with pytest.raises(ResourceError) as caught:
        Weights(tmp_path).find(weights_file(served))
    said = str(caught.value)
    for part in (str(tmp_path / "w.pth"), "18 bytes", DIGEST, "Apache-2.0", served, "--weights", "--download"):
        assert part in said
    assert said.endswith("; and this") and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_what_only_a_human_can_get_is_not_offered_for_download(tmp_path):
    with pytest.raises(ResourceError, match="from the authors and put it there, or name its folder") as caught:
        Weights(tmp_path, download=True).find(weights_file("the authors", sha256=""))
    assert "--download" not in str(caught.value) and "SHA-256 not known" in str(caught.value)


def test_another_file_by_the_same_name_is_refused_and_kept(tmp_path):
    (tmp_path / "w.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match=f"expected {DIGEST}; delete it and get it again from"):
        Weights(tmp_path, download=True).find(weights_file())
    assert (tmp_path / "w.pth").read_bytes() == CONTENT[:-1]


@pytest.mark.parametrize("known", [DIGEST, DIGEST[:8], ""])
def test_a_download_is_checked_and_put_in_its_place(tmp_path, served, known):
    path = Weights(tmp_path / "new" / "folder", download=True).find(weights_file(served, known))
    assert path.read_bytes() == CONTENT
    assert Weights(path.parent).find(weights_file(served, known)) == path


def test_a_download_of_something_else_is_refused_and_leaves_nothing(tmp_path, served):
    with pytest.raises(CheckpointError, match=r"invalid hash value.*nothing was kept"):
        Weights(tmp_path / "new", download=True).find(weights_file(served, "0" * 64))
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".w.pth.lock"]


@pytest.mark.parametrize("source", ["file:///no/such/file", "http://127.0.0.1:9/closed", "https://a b"])
def test_a_download_that_fails_says_what_to_do(tmp_path, source):
    with pytest.raises(ResourceError, match=r"cannot be downloaded to .*; get it by hand"):
        Weights(tmp_path, download=True).find(weights_file(source))
    assert not (tmp_path / "w.pth").exists()


class _Hub(BaseHTTPRequestHandler):
    """As much of huggingface.co as a download needs."""

    FILES = {  # noqa: RUF012
        "config.json": b"{}",
        "vocab.txt": b"words",
        "model.safetensors": CONTENT,
        "pytorch_model.bin": b"the same again",
        "tf_model.h5": b"and again",
        "onnx/model.safetensors": b"and again",
    }
    COMMIT = "0123456789" * 4

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        if self.path.startswith("/api/models/somebody/model"):
            siblings = [{"rfilename": name} for name in self.FILES]
            body, extra = json.dumps({"id": "somebody/model", "sha": self.COMMIT, "siblings": siblings}).encode(), {}
        elif (name := self.path.removeprefix(f"/somebody/model/resolve/{self.COMMIT}/")) in self.FILES:
            body = self.FILES[name]
            extra = {"X-Repo-Commit": self.COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, said in {"Content-Length": str(len(body)), "Content-Type": "application/json", **extra}.items():
            self.send_header(key, said)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture
def hub_address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


_FROM_HUB = """
from pathlib import Path
from pixelspace.evaluation.weights import Weights, WeightsFile
for name, source in ("model", "hf:somebody/model"), ("else", "hf:somebody/else"):
    Weights(Path.cwd(), download=True).find(WeightsFile(name, source, 0, "", "MIT"))
"""


def test_a_model_folder_is_downloaded_with_one_copy_of_its_weights_or_else_is_not_there(tmp_path, hub_address):
    pytest.importorskip("huggingface_hub")
    # In a process of its own: huggingface_hub asks the environment but once for its address.
    place = {"HF_ENDPOINT": hub_address, "HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", _FROM_HUB], cwd=tmp_path, env=os.environ | place, capture_output=True, text=True
    )
    path = tmp_path / "model"
    assert {item.name for item in path.iterdir() if item.is_file()} == {"config.json", "vocab.txt", "model.safetensors"}
    assert sha256_of(path) == hashlib.sha256(f"model.safetensors {DIGEST}\n".encode()).hexdigest()
    said = ran.stderr.splitlines()[-1]
    assert re.match("pixelspace.errors.ResourceError: hf:somebody/else: cannot be downloaded: .*404", said)
    assert not (tmp_path / "else").exists()


def test_a_folders_hash_is_that_of_what_is_read_of_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    found = sha256_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"another layout")
    (tmp_path / "config.json").write_bytes(b"{}")
    assert sha256_of(tmp_path) == found
    (tmp_path / "model.safetensors").write_bytes(CONTENT + b"!")
    assert sha256_of(tmp_path) != found


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["absent", "an empty folder"])
def test_what_has_no_hash_says_so(tmp_path, make):
    make(tmp_path / "w")
    with pytest.raises(CheckpointError, match="w: "):
        sha256_of(tmp_path / "w")


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("counted", [True, False])
def test_a_state_dict_fills_a_network_with_or_without_counters(tmp_path, suffix, counted):
    source, target = network(), network()
    state = {name: tensor for name, tensor in source.state_dict().items() if counted or "batches" not in name}
    (torch.save if suffix == ".pth" else save_file)(state, tmp_path / f"w{suffix}")
    load_network(target, tmp_path / f"w{suffix}")
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


def _program(path):
    torch.save(network(), path)


def _archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/code/__torch__.py", "x = 1")
        file.writestr("archive/constants.pkl", b"\x80\x02).")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"<html>not found</html>"),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"0.weight": 1.0}, path),
        lambda path: torch.save(nn.Linear(2, 3).state_dict(), path),
        lambda path: torch.save(network().state_dict() | {"aux.weight": torch.ones(1)}, path),
        lambda path: torch.save(network().state_dict() | {"0.weight": torch.full((3, 2), torch.nan)}, path),
        lambda path: torch.save(network().state_dict() | {"0.weight": torch.ones(2, 3)}, path),
        _program,
        _archive,
    ],
    ids=["html", "empty", "list", "numbers", "other", "more", "nan", "shape", "module", "script"],
)
def test_what_is_not_the_networks_state_dict_is_refused_in_one_line(tmp_path, write):
    write(tmp_path / "w.pth")
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"w\.pth: ") as caught:
        load_network(target, tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
