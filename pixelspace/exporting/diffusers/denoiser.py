"""A pixelspace network as a component of diffusers. This file is copied beside the weights it is for."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin  # pyright: ignore
from diffusers.configuration_utils import register_to_config  # pyright: ignore

from pixelspace.api import read_config
from pixelspace.errors import UserError
from pixelspace.model import Model


class PixelspaceDenoiser(ModelMixin, ConfigMixin):
    """The network, and `nothing`: what its text encoder makes of "". `model` is its ModelConfig as plain data."""

    @register_to_config
    def __init__(self, model: dict[str, Any], nothing: dict[str, Any]):
        super().__init__()
        self.described = read_config(model)
        self.network = self.described.backbone.build()
        for name, (shape, dtype) in nothing.items():
            self.register_buffer(f"nothing_{name}", torch.zeros(shape, dtype=getattr(torch, dtype)))

    def model(self) -> Model:
        """The network with all that draws by it.

        Raises:
            UserError: weights, or buffers, were rounded when they were loaded.
        """
        found = {tensor.dtype for tensor in self.state_dict().values() if tensor.is_floating_point()}
        if found - {torch.float32}:
            raise UserError(
                f"dtype: found {sorted(map(str, found))}; leave it out: weights are float32 in memory, and "
                f"arithmetic is in the recipe's precision, {self.described.precision}"
            )
        nothing = {name.removeprefix("nothing_"): rows for name, rows in self.named_buffers(recurse=False)}
        return Model.around(self.described, self.network, nothing)
