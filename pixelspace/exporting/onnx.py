"""The denoiser as an ONNX file, held against the model in onnxruntime (extra `onnx`)."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelspace.errors import ResourceError
from pixelspace.exporting.denoiser import Denoiser, check_alike, exported
from pixelspace.exporting.folder import described, new_folder, write_json
from pixelspace.model import Model

FILE = "denoiser.onnx"


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ResourceError(f"ONNX cannot be written: {error}; pip install 'pixelspace[onnx]'") from error
    return onnxruntime


def to_onnx(model: Model, out: Path) -> float:
    """Writes `denoiser.onnx` (see `Denoiser` for its inputs) and `model.json` into the new folder `out`, and returns by
    how much onnxruntime's outputs differ from the model's, as a share of the largest number.

    Raises:
        UserError: `out` holds something, or the network needs conditions that no image is drawn by.
        NumericalError: the outputs differ by more than 1e-4.
        ResourceError: packages are missing, or the disk refuses.
    """
    runtime = _runtime()
    denoiser = Denoiser(model)
    with new_folder(out) as folder:
        with warnings.catch_warnings():  # of what PyTorch's own modules do
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # that torchvision's operators are not there
            program = torch.onnx.export(
                exported(denoiser),
                denoiser.example(3),
                dynamo=True,
                verbose=False,
                input_names=list(denoiser.names),
                output_names=list(denoiser.outputs),
            )
        assert program is not None
        program.save(str(folder / FILE))
        session = runtime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
        taken = {one.name for one in session.get_inputs()}  # a mask of text that changes nothing may be gone

        def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
            by_name = dict(zip(denoiser.names, inputs, strict=True))
            given = {name: rows.numpy() for name, rows in by_name.items() if name in taken}
            return [torch.from_numpy(rows) for rows in session.run(list(denoiser.outputs), given)]

        found = check_alike(run, denoiser, out / FILE)
        write_json(folder / "model.json", described(model.config))
    return found
