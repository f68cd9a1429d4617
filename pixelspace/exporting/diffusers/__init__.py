"""A folder that diffusers loads as a pipeline, by its own mechanism for custom code: `pipeline.py` and `denoiser.py`
here are copied into it as they stand, and run where it is loaded with `trust_remote_code=True`."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pixelspace.exporting.folder import described, new_folder, write_json
from pixelspace.exporting.weights import Kept, in_precision
from pixelspace.model import Model

_DIFFUSERS = "0.35.0"  # the oldest whose format this is


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}


def to_diffusers(model: Model, out: Path, kept: Kept = "fp32") -> None:
    """Writes the new folder `out`, which `DiffusionPipeline.from_pretrained(out, trust_remote_code=True)` opens where
    diffusers and pixelspace are installed; weights as `kept` says. A VAE or text encoder from a folder of the user's is
    not in it.

    Raises:
        UserError: `out` holds something, or weights are too large for float16.
        ResourceError: the disk refuses.
    """
    here = Path(__file__).parent
    nothing = {name: rows.cpu() for name, rows in model.nothing.items()}
    shapes = {name: [list(rows.shape), str(rows.dtype).removeprefix("torch.")] for name, rows in nothing.items()}
    weights = {
        **{f"network.{name}": tensor for name, tensor in in_precision(model.backbone, kept).items()},
        **{f"nothing_{name}": tensor for name, tensor in nothing.items()},
    }
    with new_folder(out) as folder:
        (folder / "denoiser").mkdir()
        shutil.copyfile(here / "pipeline.py", folder / "pipeline.py")
        shutil.copyfile(here / "denoiser.py", folder / "denoiser/pixelspace_denoiser.py")
        write_json(
            folder / "model_index.json",
            {
                "_class_name": ["pipeline", "PixelspacePipeline"],
                "_diffusers_version": _DIFFUSERS,
                "denoiser": ["pixelspace_denoiser", "PixelspaceDenoiser"],
            },
        )
        write_json(
            folder / "denoiser/config.json",
            {
                "_class_name": "PixelspaceDenoiser",
                "_diffusers_version": _DIFFUSERS,
                "model": described(model.config),
                "nothing": shapes,
            },
        )
        saved = folder / "denoiser/diffusion_pytorch_model.safetensors"
        save_file(_contiguous(weights), saved, metadata={"format": "pt"})
        shutil.copymode(folder / "model_index.json", saved)  # the library lets nobody else read it
