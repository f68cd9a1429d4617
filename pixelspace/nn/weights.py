"""Weights into networks, every name accounted for."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pixelspace.errors import CheckpointError


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and bytes of tensors, whatever their order and device."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights` into `network`, in the network's own dtypes.

    Raises:
        CheckpointError: a missing, unknown, wrongly shaped or non-finite tensor, by name.
    """
    own = network.state_dict()
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    if missing or unknown:
        raise CheckpointError(
            f"the weights are of another architecture: {len(missing)} missing {sorted(missing)[:3]}, "
            f"{len(unknown)} unknown {sorted(unknown)[:3]}"
        )
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"the weights are of another architecture: {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(own[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"the weights are unsound: {name} holds values that are not finite")
    network.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in weights.items()})
