"""Models that the package transformers (extra `text`) reads from folders in Hugging Face's layout.

It is never let on the network here, runs no code of a model's own, and reads pickled weights by PyTorch's restricted
reader alone.
"""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch

from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.foreign import one_line

# All that transformers has been seen to raise on damaged folders, beside its own StrictDataclassError.
_READER_ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, EOFError),
    *(safetensors.SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile),
)
_BUFFERS = ("position_ids", "inv_freq")  # which older versions stored, and which are computed now


def library() -> Any:
    """The package transformers.

    Raises:
        ResourceError: it cannot be imported.
    """
    try:
        import transformers  # pyright: ignore
    except ImportError as error:
        raise ResourceError(f"transformers cannot be imported ({error}); pip install 'pixelspace[text]'") from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and logged tables; what is wrong is raised."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Makes every fault of transformers' readers a CheckpointError of one line."""
    from huggingface_hub.errors import StrictDataclassError  # pyright: ignore

    try:
        with _quiet(library()):
            yield
    except (*_READER_ERRORS, StrictDataclassError) as error:
        raise CheckpointError(f"{folder}: transformers cannot read it: {one_line(error)}") from error


def load_model(
    kind: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    unused: tuple[str, ...] = (),
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """transformers' class `kind` with the folder's weights, on the CPU.

    Weights whose names begin with one of `unused` are left out; `settings` go to the class.

    Raises:
        CheckpointError: damaged, or without just the names and shapes that config.json asks for.
    """
    with reading(folder):
        model, found = getattr(library(), kind).from_pretrained(
            folder, local_files_only=True, dtype=dtype, output_loading_info=True, **(settings or {})
        )
    missing = sorted(found["missing_keys"])
    unknown = sorted(name for name in found["unexpected_keys"] if not name.endswith(_BUFFERS))
    unknown = [name for name in unknown if not name.startswith(unused)]
    if missing or unknown:
        raise CheckpointError(
            f"{folder}: the weights are not those of its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    return model.eval().requires_grad_(False)
