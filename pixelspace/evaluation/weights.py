"""Where the weights of metrics are: looked for in one folder, and downloaded only when asked."""

import fcntl
import hashlib
import http.client
import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.foreign import read_state_dict
from pixelspace.nn.weights import load_weights

_HUB = "hf:"
_URLS = ("https://", "http://", "file://")
_TENSORS = (".safetensors", ".bin")  # in a Hugging Face folder, in the order that transformers looks for them
_SETTINGS = (".json", ".txt", ".model")


@dataclass(frozen=True)
class WeightsFile:
    """A file, or a Hugging Face model folder, by its name below the folder of weights, and what is known of it.

    `source` is a URL, `hf:owner/name` for a folder, or else words for a human. `sha256` is that of `sha256_of`, its
    beginning, or "" where it is not known; `bytes` is 0 there. `note` ends the messages about it.
    """

    name: str
    source: str
    bytes: int
    sha256: str
    licence: str
    note: str = ""


def _tensor_files(folder: Path) -> list[Path]:
    found = ([path for path in sorted(folder.iterdir()) if path.suffix == suffix] for suffix in _TENSORS)
    return next(filter(None, found), [])


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; of a Hugging Face model folder that of the names and SHA-256 of the files its weights are
    read from.

    Raises:
        CheckpointError: it cannot be read, or is a folder without weights.
    """
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        files = _tensor_files(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not files:
        raise CheckpointError(f"{path}: a folder without weights: expected *{' or *'.join(_TENSORS)} in it")
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()


def load_network(network: nn.Module, path: Path) -> None:
    """Fills `network` with the state dict in a safetensors file or a PyTorch pickle of plain tensors. Only the counters
    of batch normalisation, which nothing reads here, may be absent.

    Raises:
        CheckpointError: absent, damaged, with code in it, or the weights of another network.
    """
    found = read_state_dict(path)
    counters = {
        name: torch.zeros_like(tensor, device="cpu")
        for name, tensor in network.state_dict().items()
        if name.endswith(".num_batches_tracked")
    }
    try:
        load_weights(network, counters | found)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time downloads to `path`."""
    with path.with_name(f".{path.name}.lock").open("wb") as file:
        with suppress(OSError):  # where a file system has no locks, each downloads its own
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _from_url(file: WeightsFile, path: Path) -> None:
    try:
        torch.hub.download_url_to_file(file.source, str(path), file.sha256 or None)
    except RuntimeError as error:
        raise CheckpointError(f"{file.source}: not what was expected: {error}; nothing was kept") from error


def _from_hub(file: WeightsFile, path: Path) -> None:
    """Downloads what transformers reads of a model, all of one revision; what came stays for the next try."""
    try:
        api = importlib.import_module("huggingface_hub").HfApi()
        http_error = importlib.import_module("huggingface_hub.errors").HfHubHTTPError
    except ImportError as error:
        raise ResourceError(f"huggingface_hub cannot be imported ({error}); pip install 'pixelspace[text]'") from error
    repository, draft = file.source.removeprefix(_HUB), path.with_name(f".{path.name}.part")
    try:
        info = api.model_info(repository)
        names = [Path(sibling.rfilename) for sibling in info.siblings if "/" not in sibling.rfilename]
        tensors = next((suffix for suffix in _TENSORS if any(name.suffix == suffix for name in names)), "")
        if not tensors:
            raise CheckpointError(f"{file.source}: no weights in it: expected *{' or *'.join(_TENSORS)}")
        for name in names:
            if name.suffix in (*_SETTINGS, tensors):
                api.hf_hub_download(repository, name.name, revision=info.sha, local_dir=draft)
    except (ValueError, *http_error.__bases__) as error:  # its bases: the errors of whichever HTTP library it uses
        said = " ".join(str(error).split()) or type(error).__name__
        raise ResourceError(f"{file.source}: cannot be downloaded: {said:.300}; {path} is not there yet") from error
    draft.rename(path)


def _download(file: WeightsFile, path: Path) -> None:
    fetch = _from_hub if file.source.startswith(_HUB) else _from_url
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not path.exists():
                fetch(file, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ResourceError(f"{file.source}: cannot be downloaded to {path}: {error}; get it by hand") from error


@dataclass(frozen=True)
class Weights:
    """The folder that weights are looked for in; with `download` what is missing is fetched into it."""

    folder: Path
    download: bool = False

    def find(self, file: WeightsFile) -> Path:
        """Where it is, its hash checked where that is known.

        Raises:
            ResourceError: absent, and not to be downloaded or not to be had; the message says what to put where.
            CheckpointError: damaged, or another file by the same name.
        """
        path, can_download = self.folder / file.name, file.source.startswith((_HUB, *_URLS))
        if not path.exists() and self.download and can_download:
            _download(file, path)
        if not path.exists():
            or_else = "or name its folder with --weights or in $PIXELSPACE_WEIGHTS"
            if can_download:
                or_else = "name its folder with --weights or in $PIXELSPACE_WEIGHTS, or allow --download"
            size = f"{file.bytes:,} bytes" if file.bytes else "size not known"
            digest = f"SHA-256 {file.sha256}" if file.sha256 else "SHA-256 not known"
            raise ResourceError(
                f"{path}: no such weights; get {file.name} ({size}, {digest}, {file.licence}) from {file.source} and "
                f"put it there, {or_else}{file.note and f'; {file.note}'}"
            )
        if file.sha256 and not (found := sha256_of(path)).startswith(file.sha256):
            raise CheckpointError(
                f"{path}: is damaged or something else: SHA-256 {found}, expected {file.sha256}; delete it and get it "
                f"again from {file.source}{file.note and f'; {file.note}'}"
            )
        return path
