"""Any function of pixels as an extractor: another network for FD or FVD, by a few lines of one's own."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.evaluation.features import Extractor, Opened
from pixelspace.evaluation.weights import Weights


class Custom(Extractor):
    """`function` takes uint8 images (B, 3, H, W), or clips (B, 3, T, H, W), on the device it is opened for, and gives
    features (B, width); `output` is their name.

    `name` is what reports call it and what kept features are found by, so it has to say all that changes its numbers;
    `sha256` is that of its weights, see `sha256_of`. A module must stand on the device, in eval mode, beforehand.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], *, name: str, output: str, width: int, sha256: str
    ) -> None:
        if width < 1:
            raise UserError(f"{name}: its width must be positive, found {width}")
        self.function, self._name, self._outputs, self.sha256 = function, name, {output: width}, sha256

    @property
    def name(self) -> str:
        return self._name

    @property
    def outputs(self) -> Mapping[str, int]:
        return self._outputs

    def open(self, weights: Weights, device: torch.device) -> Opened:
        ((output, width),) = self._outputs.items()

        def compute(images: Tensor) -> dict[str, Tensor]:
            rows = self.function(images.to(device))
            if rows.shape != (len(images), width):
                raise UserError(
                    f"{self._name}: gave {tuple(rows.shape)} for {len(images)} images; expected {(len(images), width)}"
                )
            return {output: rows.float().cpu()}

        return Opened(self.sha256, compute)
