"""k-diffusion's HDiT (`image_transformer_v2`): its configuration, its inference weights and training checkpoints.

Parameter names are ours as they are; only the configuration is translated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pixelspace.backbones.hdit import Attention, Global, HDiTConfig, Level, Neighborhood, ShiftedWindow
from pixelspace.config import nearest, parse_json, read_json
from pixelspace.errors import CheckpointError, UserError
from pixelspace.foreign import read_pickle, read_safetensors
from pixelspace.noise.levels import (
    Cosine,
    CosineInterpolated,
    Karras,
    Levels,
    LogLogistic,
    LogNormal,
    LogUniform,
    SplitLogNormal,
)
from pixelspace.noise.process import EDM, Process
from pixelspace.noise.weighting import SNR, SoftMinSNR, Unit, Weighting
from pixelspace.objectives.denoising import Denoising
from pixelspace.sampling.generate import Sampling


@dataclass(frozen=True, slots=True)
class Described:
    """What a configuration says, as our values."""

    backbone: HDiTConfig
    objective: Denoising
    sampling: Sampling
    size: tuple[int, int]


# Every key with its default, as upstream's; None: required or derived from others.
_MODEL: dict[str, Any] = {
    "type": None,
    "input_channels": None,
    "input_size": None,
    "patch_size": None,
    "depths": None,
    "widths": None,
    "d_ffs": None,
    "self_attns": None,
    "dropout_rate": 0.0,
    "mapping_width": 256,
    "mapping_depth": 2,
    "mapping_d_ff": None,
    "mapping_cond_dim": 0,
    "mapping_dropout_rate": 0.0,
    "sigma_data": 1.0,
    "sigma_min": None,
    "sigma_max": None,
    "sigma_sample_density": None,
    "loss_config": "karras",
    "loss_weighting": "karras",
    "loss_scales": 1,
    "augment_prob": 0.0,
    "augment_wrapper": False,
    "skip_stages": 0,
    "has_variance": False,
}
_REQUIRED = ("input_channels", "input_size", "patch_size", "depths", "widths", "sigma_min", "sigma_max")


def _attention(spec: Mapping[str, Any]) -> Attention | None:
    kind, head_dim = spec.get("type"), spec.get("d_head", 64)
    if kind == "none":
        return None
    if kind == "global":
        return Global(head_dim)
    if kind == "neighborhood":
        return Neighborhood(head_dim, spec.get("kernel_size", 7))
    if kind == "shifted-window":
        return ShiftedWindow(spec["window_size"], head_dim)
    raise UserError(f"self_attns: no such type {kind!r}; known: none, global, neighborhood, shifted-window")


def read_levels(model: Mapping[str, Any]) -> Levels:
    """The training density of a `model` section (`sigma_sample_density`), with upstream's defaults."""
    sigma_data, low, high = (float(model[k]) for k in ("sigma_data", "sigma_min", "sigma_max"))
    spec = dict(model["sigma_sample_density"] or {})
    kind = spec.pop("type", None)
    for long, short in (("mean", "loc"), ("std", "scale"), ("std_1", "scale_1"), ("std_2", "scale_2")):
        if long in spec:
            spec[short] = spec.pop(long)
    k = {key: float(number) for key, number in spec.items()}
    size = float(max(model["input_size"]))
    if kind == "lognormal":
        return LogNormal(k["loc"], k["scale"])
    if kind == "loglogistic":
        top = k.get("max_value", float("inf"))
        loc = k.get("loc", float(torch.tensor(sigma_data, dtype=torch.float64).log()))
        return LogLogistic(loc, k.get("scale", 0.5), k.get("min_value", 0.0), None if top == float("inf") else top)
    if kind == "loguniform":
        return LogUniform(k.get("min_value", low), k.get("max_value", high))
    if kind in ("v-diffusion", "cosine"):
        return Cosine(sigma_data, k.get("min_value", 1e-3), k.get("max_value", 1e3))
    if kind == "split-lognormal":
        return SplitLogNormal(k["loc"], k["scale_1"], k["scale_2"])
    if kind == "cosine-interpolated":
        return CosineInterpolated(
            image_d=k.get("image_d", size),
            noise_d_low=k.get("noise_d_low", 32.0),
            noise_d_high=k.get("noise_d_high", size),
            sigma_data=sigma_data,
            sigma_min=k.get("min_value", min(low, 1e-3)),
            sigma_max=k.get("max_value", max(high, 1e3)),
        )
    raise UserError(f"sigma_sample_density: no such type {kind!r}")


def _weighting(model: Mapping[str, Any]) -> Weighting:
    if model["loss_config"] == "simple":
        return SNR()  # the noise's squared error, in other words
    weightings = {"karras": Unit(), "soft-min-snr": SoftMinSNR(float(model["sigma_data"]) ** -2), "snr": SNR()}
    if model["loss_weighting"] not in weightings:
        raise UserError(f"loss_weighting: {nearest(str(model['loss_weighting']), weightings)}")
    return weightings[model["loss_weighting"]]


def read_config(config: Mapping[str, Any]) -> Described:
    """Translates a configuration (the JSON that k-diffusion trains from, or that its weights carry).

    Raises:
        UserError: another model type, a missing or unknown key, or a value upstream has no meaning for.
    """
    given = config.get("model", {})
    if given.get("type") != "image_transformer_v2":
        raise UserError(f"model.type: expected 'image_transformer_v2' (HDiT), found {given.get('type')!r}")
    for key in given:
        if key not in _MODEL:
            raise UserError(f"model.{key}: no such setting; {nearest(key, _MODEL)}")
    for key in _REQUIRED:
        if key not in given:
            raise UserError(f"model.{key}: missing")
    model = {**_MODEL, **given}
    if model["has_variance"]:
        raise UserError("model.has_variance: HDiT has no variance output; set it to false")
    widths, depths = model["widths"], model["depths"]
    neighborhood = {"type": "neighborhood"}
    attentions = model["self_attns"] or [*[neighborhood] * (len(widths) - 1), {"type": "global"}]
    hidden = model["d_ffs"] or [0] * len(widths)
    dropout = model["dropout_rate"]
    dropout = list(dropout) if isinstance(dropout, list | tuple) else [dropout] * len(widths)
    if not len(widths) == len(depths) == len(attentions) == len(hidden) == len(dropout):
        raise UserError("model: widths, depths, self_attns, d_ffs and dropout_rate need one entry a level")
    dataset = config.get("dataset", {})
    backbone = HDiTConfig(
        levels=tuple(
            Level(width, depth, _attention(spec), ff, float(rate))
            for width, depth, spec, ff, rate in zip(widths, depths, attentions, hidden, dropout, strict=True)
        ),
        channels=model["input_channels"],
        patch=tuple(model["patch_size"]),
        mapping_width=model["mapping_width"],
        mapping_depth=model["mapping_depth"],
        mapping_hidden=model["mapping_d_ff"] or 0,
        mapping_dropout=float(model["mapping_dropout_rate"]),
        mapping_cond=model["mapping_cond_dim"],
        num_classes=dataset.get("num_classes", 0),
    )
    density = model["sigma_sample_density"]
    objective = Denoising(
        process=Process(EDM(float(model["sigma_data"]))),
        levels=read_levels(model) if density else LogUniform(float(model["sigma_min"]), float(model["sigma_max"])),
        weighting=_weighting(model),
        drop_rate=float(dataset.get("cond_dropout_rate", 0.1)) if backbone.num_classes else 0.0,
        scales=float(model["loss_scales"]),
    )
    sampling = Sampling(levels=Karras(float(model["sigma_min"]), float(model["sigma_max"])))
    height, width = model["input_size"]
    return Described(backbone, objective, sampling, (height, width))


def read_checkpoint(
    path: Path, chosen: Literal["ema", "raw"] = "ema"
) -> tuple[dict[str, Tensor], Mapping[str, Any] | None]:
    """The weights of an inference file (.safetensors) or training checkpoint (averaged where it has such), and the
    configuration they carry, if any.

    Raises:
        CheckpointError: absent, damaged, or with anything but tensors and plain values in it.
    """
    if path.suffix == ".safetensors":
        weights, metadata = read_safetensors(path)
        try:
            return weights, parse_json(metadata["config"]) if "config" in metadata else None
        except ValueError as error:
            raise CheckpointError(f"{path}: the configuration in its header is not JSON: {error}") from error
    data = read_pickle(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a mapping of names, found {type(data).__name__}")
    weights = (data.get("model_ema") if chosen == "ema" else None) or data.get("model") or data
    if not weights or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{path}: expected 'model_ema', 'model' or a plain state dict; found {sorted(data)[:8]}")
    return dict(weights), data.get("config") if weights is not data else None


def open_config(config: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any] | None:
    """A configuration given as a mapping or a JSON file."""
    if isinstance(config, str | Path):
        config = read_json(Path(config))
        if not isinstance(config, dict):
            raise UserError(f"the configuration must be a JSON object, found {type(config).__name__}")
    return config
