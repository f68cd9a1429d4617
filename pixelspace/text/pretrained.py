"""Text encoders of transformers (extra `text`), from a folder or the Hugging Face hub: see `families.FAMILIES`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from pixelspace.config import value
from pixelspace.errors import CheckpointError, ResourceError, UserError
from pixelspace.text.encoder import TextEncoder
from pixelspace.text.network import WEIGHTS, Frozen, NetworkReader

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SETTINGS = ("*.json", "*.txt", "*.model")


def _from_hub(name: str, local: bool) -> Path:
    """The folder of a model in the library's own cache; unless `local` it is downloaded, with the first kind of weights
    that it has."""
    try:
        from huggingface_hub import errors, snapshot_download  # pyright: ignore
    except ImportError as error:
        raise ResourceError(f"huggingface_hub cannot be imported ({error}); pip install 'pixelspace[text]'") from error
    of_http: tuple[Any, ...] = errors.HfHubHTTPError.__bases__  # of whichever HTTP library it uses
    found = Path()
    try:
        for weights in WEIGHTS:
            patterns = [*_SETTINGS, weights]
            found = Path(
                snapshot_download(name, allow_patterns=patterns, ignore_patterns="*/*", local_files_only=local)
            )
            if any(found.glob(weights)):
                break
    except (OSError, ValueError, *of_http) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ResourceError(f"{name}: no such folder, and it cannot be had from the hub: {said:.300}") from error
    return found


@value
class Pretrained(TextEncoder):
    """The text encoder in the folder `path`, or of that name on the hub (once downloaded no network is needed; with
    HF_HUB_OFFLINE=1 none is tried). Weights and arithmetic are of `precision`, what comes out is float32.

    A caption of more than `length` tokens is cut as the model's tokenizer does, which keeps the end token. CLIP takes
    up to 77, SigLIP always 64. `spaces` is how a T5's pieces are cut: `library` as T5 was trained, with runs of spaces
    as one and characters normalised (NFKC); `mdm` as apple/ml-mdm does when it samples, and `mdm-training` as it does
    when it trains, which has a space more at the end (see `tokens`).
    """

    path: str
    length: int = 128
    fill: bool = True
    precision: Literal["fp32", "bf16"] = "bf16"
    spaces: Literal["library", "mdm", "mdm-training"] = "library"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("Pretrained: path is empty; give a folder or a name on the hub")
        if not 2 <= self.length <= 8192:
            raise ValueError(f"Pretrained: length must be from 2 to 8192, found {self.length}")

    def _frozen(self, local: bool = False) -> Frozen:
        folder = Path(self.path)
        if not folder.is_dir():
            if folder.exists() or not _HUB_NAME.fullmatch(self.path):
                raise UserError(f"{self.path}: no such folder; give a text encoder's, or its name on the hub")
            folder = _from_hub(self.path, local)
        return Frozen(folder, self.length, self.fill, self.precision, self.spaces)

    def identity(self) -> str | None:
        try:
            return self._frozen(local=True).identity()
        except (ResourceError, CheckpointError, UserError):
            return None

    def at(self, path: str) -> "Pretrained":
        return replace(self, path=path)

    def open(self, device: torch.device) -> NetworkReader:
        return self._frozen().open(device)
