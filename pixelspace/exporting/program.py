"""The denoiser as a program of torch.export, which needs PyTorch alone."""

from pathlib import Path

import torch

from pixelspace.exporting.denoiser import Denoiser, check_alike, exported
from pixelspace.exporting.folder import described, new_folder, write_json
from pixelspace.model import Model

FILE = "denoiser.pt2"


def to_program(model: Model, out: Path) -> float:
    """Writes `denoiser.pt2` (`torch.export.load(file).module()(*inputs)`; see `Denoiser` for them) and `model.json`
    into the new folder `out`, and returns by how much what is read back differs from the model, as a share of the
    largest number.

    Raises:
        UserError: `out` holds something, or the network needs conditions that no image is drawn by.
        NumericalError: the outputs differ by more than 1e-4.
        ResourceError: the disk refuses.
    """
    denoiser = Denoiser(model)
    with new_folder(out) as folder:
        torch.export.save(exported(denoiser), folder / FILE)
        again = torch.export.load(folder / FILE).module()
        found = check_alike(lambda inputs: again(*inputs), denoiser, out / FILE)
        write_json(folder / "model.json", described(model.config))
    return found
