"""MaskDiT's checkpoints: which network the tensors make, and the tensors by our names.

Nearly all of the configuration is in the tensors' shapes; what a configuration says besides must agree with them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.config import nearest
from pixelspace.data.codec import Codec, Pixels
from pixelspace.errors import CheckpointError, UserError
from pixelspace.foreign import Arguments, read_pickle, read_safetensors
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.noise.levels import Karras
from pixelspace.noise.process import EDM, Process
from pixelspace.sampling.generate import Sampling

_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16}  # of DiT's sizes, by width
_DECODER_HEADS = 16  # of the original, at every size
_IGNORED = frozenset("note model_type class_dropout_prob precond sigma_min sigma_max use_fp16 self_cond".split())


@dataclass(frozen=True, slots=True)
class Described:
    """What a checkpoint holds, as our values, and its tensors by our names."""

    backbone: MaskDiTConfig
    process: Process
    sampling: Sampling
    size: tuple[int, int]
    codec: Codec
    weights: dict[str, Tensor]


def read_checkpoint(path: Path, weights: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """The averaged or raw weights of a training checkpoint, or those of a plain state dict.

    Raises:
        CheckpointError: absent, damaged, with code in it, or without such weights.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    data = read_pickle(path)
    if isinstance(data, dict) and data and all(isinstance(tensor, Tensor) for tensor in data.values()):
        return data
    key = {"ema": "ema", "raw": "model"}[weights]
    found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
    state = data.get(key) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: expected {key!r} with a network's tensors, found {found}")
    return dict(state)


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what compilation, parallel training and preconditioning put before the names."""
    return {re.sub(r"_orig_mod\.|module\.", "", name).removeprefix("model."): t for name, t in weights.items()}


def _count(weights: Mapping[str, Tensor], stem: str) -> int:
    found = {int(m[1]) for name in weights if (m := re.match(rf"{stem}\.(\d+)\.", name))}
    if found != set(range(len(found))):
        raise CheckpointError(f"{stem}: blocks {sorted(found)} are not numbered from 0 on; the checkpoint is not whole")
    return len(found)


def _shape(weights: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    if name not in weights or weights[name].ndim != ndim:
        what = tuple(weights[name].shape) if name in weights else f"names as {sorted(weights)[:3]}"
        raise CheckpointError(f"not a MaskDiT checkpoint: expected {name} with {ndim} axes, found {what}")
    return tuple(weights[name].shape)


def _feature_name(weights: Mapping[str, Tensor]) -> str | None:
    """The external feature's linear map, the only one beside those whose names are known."""
    known = r"(x|t|y|cls_token)_embedder\.|enc_feat_embedder\.|blocks\.|decoder_|final_layer\."
    names = [n for n in weights if n.endswith(".weight") and not re.match(known, n)]
    return names[0].removesuffix(".weight") if len(names) == 1 else None


def _side(tokens: int, what: str) -> int:
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise CheckpointError(f"{what}: {tokens} positions are no square grid")
    return side


def read_model(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Described:
    """The network that `weights` are of; `config` has the original's names and may leave out what shapes tell.

    Raises:
        UserError: a configuration with unknown names, or without a number that shapes cannot tell.
        CheckpointError: other tensors than MaskDiT's, or than the configuration says.
    """
    weights = _renamed(weights)
    given = dict(config or {})
    if isinstance(given.get("config"), Mapping):
        given = dict(given["config"])
    width, channels, patch, _ = _shape(weights, "x_embedder.proj.weight", 4)
    cls_token = "cls_token" in weights
    positions = _shape(weights, "pos_embed", 3)[1] - cls_token
    side = _side(positions, "pos_embed") * patch
    has_decoder = "decoder_layer.linear.weight" in weights
    y_table = weights.get("y_embedder.embedding_table.weight")
    decoder_width = _shape(weights, "decoder_layer.linear.weight", 2)[0] if has_decoder else 0
    decoder_positions = _shape(weights, "decoder_pos_embed", 3)[1] if has_decoder else positions
    feature = _feature_name(weights)
    own = {
        "img_resolution": side,
        "img_channels": channels,
        "num_classes": 0 if y_table is None else y_table.shape[1],
        "patch_size": patch,
        "hidden_size": width,
        "depth": _count(weights, "blocks"),
        "mlp_ratio": _shape(weights, "blocks.0.mlp.fc1.weight", 2)[0] / width,
        "use_decoder": has_decoder,
        "decoder_hidden_size": decoder_width,
        "decoder_depth": _count(weights, "decoder_blocks"),
        "pad_cls_token": cls_token,
        "direct_cls_token": decoder_positions > positions,
        "use_encoder_feat": "enc_feat_embedder.weight" in weights,
        "ext_feature_dim": weights[f"{feature}.weight"].shape[-1] if feature else 0,
        "learn_sigma": _shape(weights, "final_layer.linear.weight", 2)[0] != patch**2 * channels,
    }
    free = ("num_heads", "decoder_num_heads", "sigma_data", "mae_loss_coef")
    for key, said in given.items():
        if key not in own and key not in free and key not in _IGNORED:
            raise UserError(f"config.{key}: no such setting; {nearest(key, [*own, *free])}")
        without_decoder = key.startswith("decoder_") and not has_decoder
        if key in own and own[key] != said and not without_decoder:
            raise CheckpointError(f"the checkpoint is of another network: {key} is {own[key]} in it, {said} in config")
    if own["learn_sigma"]:
        raise CheckpointError("final_layer.linear.weight: a network that learns sigma is not supported")
    num_heads = given.get("num_heads", _HEADS.get(width))
    if num_heads is None:
        raise UserError(f"config.num_heads: cannot be told from the tensors of a network {width} wide; give it")
    decoder = None
    if has_decoder:
        has_token = "mask_token" in weights
        if bool(given.get("mae_loss_coef", has_token)) != has_token:
            raise CheckpointError("the checkpoint is of another network: mae_loss_coef and mask_token disagree")
        heads = given.get("decoder_num_heads", _DECODER_HEADS)
        decoder = Decoder(decoder_width, own["decoder_depth"], heads, has_token, own["direct_cls_token"])
    if feature:
        weights["feature_embedder.weight"] = weights.pop(f"{feature}.weight")
        weights["feature_embedder.bias"] = weights.pop(f"{feature}.bias", weights["feature_embedder.weight"][:, 0] * 0)
    backbone = MaskDiTConfig(
        width=width,
        depth=own["depth"],
        num_heads=num_heads,
        size=(side, side),
        patch=patch,
        channels=channels,
        num_classes=own["num_classes"],
        mlp_ratio=own["mlp_ratio"],
        decoder=decoder,
        cls_token=cls_token,
        feature=own["ext_feature_dim"],
        encoder_feature=own["use_encoder_feat"],
    )
    codec = Pixels() if channels == 3 else KLVAE(channels=channels)
    guidance = 1.5 if backbone.num_classes else 1.0
    return Described(
        backbone=backbone,
        process=Process(EDM(float(given.get("sigma_data", 0.5)))),
        sampling=Sampling("heun", steps=40, levels=Karras(0.002, 80.0), guidance=guidance),
        size=(side * codec.factor, side * codec.factor),
        codec=codec,
        weights=weights,
    )


class SeededDraws:
    """The original's draws, one generator of torch an image: for its images from its seeds, draw the latents, then the
    labels, then at every solver step what churn asks for."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator(device).manual_seed(seed % 2**32) for seed in seeds]

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) standard normals."""
        return torch.stack([torch.randn(shape, generator=one, device=one.device) for one in self.generators])

    def labels(self, num_classes: int) -> Tensor:
        """(B,) class numbers."""
        return torch.stack(
            [torch.randint(num_classes, (), generator=one, device=one.device) for one in self.generators]
        )


def read_arguments(path: Path) -> dict[str, Any]:
    """What the training script was called with, where a checkpoint says so."""
    data = read_pickle(path)
    arguments = data.get("args") if isinstance(data, dict) else None
    return arguments.values if isinstance(arguments, Arguments) else {}
