"""AdamW whose moments take 8 bits a number (Dettmers et al. 2022), by torchao (BSD 3-Clause, the PyTorch team's).

The library computes the step in float32 and compiles it for each shape of a parameter, which the first step waits for.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from pixelspace.config import value
from pixelspace.errors import ResourceError
from pixelspace.training.optim import AdamW


def _library() -> Any:
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells which of its parts are for other machines than this one
    try:
        from torchao import optim
    except ImportError as error:
        raise ResourceError(
            f"optimizer AdamW8bit needs the package torchao, which is not usable here ({error}): "
            f"pip install 'pixelspace[low-memory]', or take AdamW"
        ) from error
    finally:
        logging.disable(silenced)
    return optim


@value
class AdamW8bit(AdamW):
    """AdamW with moments of 8 bits, scaled in blocks of `block`; parameters of fewer than 4096 numbers, or of a number
    that is no multiple of `block`, have moments in float32."""

    block: int = 256

    def __post_init__(self) -> None:
        AdamW.__post_init__(self)
        if self.block < 1:
            raise ValueError(f"AdamW8bit: block must be positive, found {self.block}")

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """As `AdamW.build`.

        Raises:
            UserError: one of `groups` covers nothing that learns.
            ResourceError: torchao is not there.
        """

        class Stepped(_library().AdamW8bit):
            found_inf: Tensor | None = None

            def step(self, closure: None = None) -> None:
                """A step, unless `found_inf` says that gradients are not finite, as of torch's fused AdamW."""
                if self.found_inf is not None and self.found_inf.item():
                    return
                rates = [group["lr"] for group in self.param_groups]
                for group, rate in zip(self.param_groups, rates, strict=True):
                    group["lr"] = torch.as_tensor(rate, dtype=torch.float32)  # numbers would be compiled in
                super().step()
                for group, rate in zip(self.param_groups, rates, strict=True):
                    group["lr"] = rate

            def blank(self, parameter: Tensor) -> dict[str, Tensor]:
                """A parameter's moments before its first step."""
                moments = (self._new_buffer(parameter, signed) for signed in (True, False))
                return dict(zip(("step", "exp_avg", "exp_avg_sq"), (torch.tensor(0.0), *moments), strict=True))

        return Stepped(self.placed(network), lr=self.lr, betas=self.betas, eps=self.eps, block_size=self.block)

    def moment_bytes(self, parameter: Tensor) -> int:
        """Codes of a byte and a scale for each block, and for each parameter two tables of 256 numbers."""
        if parameter.numel() < 4096 or parameter.numel() % self.block:
            return AdamW.moment_bytes(self, parameter)
        return 2 * (parameter.numel() + 4 * parameter.numel() // self.block + 4 * 256) + 4
