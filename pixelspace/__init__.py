"""Train, sample and evaluate diffusion models that make high-resolution images directly.

import pixelspace as ps

model = ps.load("runs/hdit-demo")
images = model.sample(16, seed=1)  # torch.uint8 (16, H, W, 3)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pixelspace.api import Model, import_checkpoint, load

__all__ = ["Model", "__version__", "import_checkpoint", "load"]


def __getattr__(name: str) -> Any:
    """The public names, on first use: the command line's help must not wait for torch."""
    if name in ("Model", "import_checkpoint", "load"):
        return getattr(import_module("pixelspace.api"), name)
    raise AttributeError(f"module 'pixelspace' has no attribute {name!r}")
