"""Stable Diffusion's KL autoencoder (Rombach et al. 2022, appendix G) as a codec, computed by diffusers (extra `vae`).

Two layouts are read, as data and from a local path only: a state dict in CompVis' names (`autoencoder_kl.pth`), and a
diffusers folder. Both come to diffusers' names; how wide and deep the network is follows from its tensors' shapes.
"""

import copy
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.data.codec import Codec
from pixelspace.errors import CheckpointError, ResourceError, UserError
from pixelspace.foreign import read_config, read_state_dict
from pixelspace.nn.weights import load_weights
from pixelspace.random import Rng

SCALE = 0.18215  # brings Stable Diffusion's latents to a standard deviation of about 1
_AT_ONCE = 1 << 22  # pixels encoded at once, 64 images of 256 x 256: 2 GiB an activation at 128 channels

# What no shape says, as config.json of a diffusers folder has it; another value there is refused.
_FIXED = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "norm_num_groups": 32,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
_RENAMED = (
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"\.0\.norm\.", ".0.group_norm."),
    (r"\.0\.(q|query)\.", ".0.to_q."),  # the longer names are those of diffusers before 0.17
    (r"\.0\.(k|key)\.", ".0.to_k."),
    (r"\.0\.(v|value)\.", ".0.to_v."),
    (r"\.0\.(proj_out|proj_attn)\.", ".0.to_out.0."),
)


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names, and in the shapes, that diffusers' AutoencoderKL gives them today."""
    levels = len({found[1] for name in weights if (found := re.match(r"encoder\.down\.(\d+)\.", name))})
    out = {}
    for name, tensor in weights.items():
        # CompVis counts the decoder's levels from the finest, diffusers in the order of computation.
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up_blocks.{levels - 1 - int(found[1])}.", name)
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        is_linear = re.search(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$", name)
        out[name] = tensor[:, :, 0, 0] if is_linear and tensor.shape[2:] == (1, 1) else tensor
    return out


def network_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of AutoencoderKL, read off the shapes of `renamed` weights.

    Raises:
        CheckpointError: these are not the weights of such a network.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights or weights[name].ndim != 4:
            raise CheckpointError(f"not a KL autoencoder: no convolution {name!r}; found {sorted(weights)[:4]}")
        return tuple(weights[name].shape)

    def blocks(pattern: str) -> int:
        return next(n for n in range(len(weights) + 1) if pattern.format(n) not in weights)

    levels = blocks("encoder.down_blocks.{}.resnets.0.conv1.weight")
    widths = [shape(f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)]
    colours, moments = shape("encoder.conv_in.weight")[1], shape("encoder.conv_out.weight")[0]
    channels, painted = shape("decoder.conv_in.weight")[1], shape("decoder.conv_out.weight")[0]
    if (moments, colours, painted) != (2 * channels, 3, 3) or not widths or any(width % 32 for width in widths):
        raise CheckpointError(
            f"not a KL autoencoder of RGB images: {colours} channels to {moments}, {channels} to {painted}, in levels "
            f"of width {widths}; expected 3 to {2 * channels}, {channels} to 3, and widths that 32 divides"
        )
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": blocks("encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "latent_channels": channels,
        "norm_num_groups": _FIXED["norm_num_groups"],
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in weights,
    }


def _folder_config(path: Path) -> dict[str, Any]:
    config = read_config(path, "a VAE by diffusers (vae/ of a pipeline) or a state dict's file")
    for key, expected in _FIXED.items():
        if (found := config.get(key, expected)) != expected:
            raise CheckpointError(f"{path / 'config.json'}: {key} is {found!r:.80}; only {expected!r} can be read")
    if not isinstance(config.get("scaling_factor", SCALE), float):
        raise CheckpointError(f"{path / 'config.json'}: scaling_factor is {config['scaling_factor']!r}, not a number")
    return config


@dataclass(frozen=True, slots=True)
class _Loaded:
    network: Any  # diffusers.AutoencoderKL on the CPU
    digest: str
    channels: int
    factor: int
    scale: float | None  # where the files say it


def _digest(weights: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha256.update(f"{name} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.float().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


@lru_cache(maxsize=2)
def _load(where: str) -> _Loaded:
    path, scale = Path(where), None
    if path.is_dir():
        scale = _folder_config(path).get("scaling_factor")
        names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
        file = next((path / name for name in names if (path / name).is_file()), path / names[0])
    else:
        file = path
    weights = renamed(read_state_dict(file, "a KL autoencoder"))
    try:
        config = network_config(weights)
        with torch.device("meta"):
            network = _class()(**config)
        network = network.to_empty(device="cpu").eval().requires_grad_(False)
        load_weights(network, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return _Loaded(network, _digest(weights), config["latent_channels"], factor, scale)


def _class() -> Any:
    try:
        from diffusers import AutoencoderKL  # pyright: ignore
    except ImportError as error:
        raise ResourceError(f"diffusers cannot be imported ({error}); pip install 'pixelspace[vae]'") from error
    return AutoencoderKL


@lru_cache(maxsize=2)
def _network(where: str, device: torch.device) -> Any:
    network = _load(where).network
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)


def sampled(moments: Tensor, noise: Tensor, scale: float) -> Tensor:
    """scale (mean + std noise) of a posterior given by `moments` (B, 2 channels, h, w): means, then log-variances,
    which are clamped to [-30, 20]."""
    mean, logvar = moments.float().chunk(2, 1)
    return scale * (mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise)


@value
class KLVAE(Codec):
    """The autoencoder in the file or diffusers folder `vae`, which is read when it is first needed.

    Stored are the moments of an image's posterior, (2 channels, h, w) float32; every step samples them afresh, times
    `scale`. The network computes in float32, whatever the autocast round it (on CUDA with TF32 where that is on).
    """

    truncates: ClassVar[bool] = True  # as MaskDiT's sampler does
    vae: str = "autoencoder_kl.pth"
    channels: int = 4
    factor: int = 8
    scale: float = SCALE

    def __post_init__(self) -> None:
        if self.channels < 1 or self.factor < 1 or self.scale <= 0:
            found = f"{self.channels}, {self.factor}, {self.scale}"
            raise ValueError(f"KLVAE: channels, factor and scale must be positive, found {found}")

    def _loaded(self) -> _Loaded:
        loaded = _load(os.path.realpath(os.path.expanduser(self.vae)))
        for field, found in (("channels", loaded.channels), ("factor", loaded.factor), ("scale", loaded.scale)):
            if found is not None and found != getattr(self, field):
                raise UserError(f"{self.vae}: this VAE has {field} {found}, the codec says {getattr(self, field)}")
        return loaded

    def _network(self, device: torch.device) -> Any:
        self._loaded()
        return _network(os.path.realpath(os.path.expanduser(self.vae)), device)

    def identity(self) -> str:
        """The same for the same weights, in whichever layout."""
        return f"KLVAE sha256={self._loaded().digest} scale={self.scale}"

    @torch.no_grad()
    def store(self, images: Tensor) -> Tensor:
        network, (height, width) = self._network(images.device), images.shape[2:]
        with torch.autocast(images.device.type, enabled=False):
            parts = images.split(max(1, _AT_ONCE // (height * width)))
            return torch.cat([network.encode(part.float() / 127.5 - 1).latent_dist.parameters for part in parts])

    def encode(self, stored: Tensor, rng: Rng, pos: Tensor) -> Tensor:
        noise = rng.noise("posterior", pos, (self.channels, *stored.shape[2:]), stored.device)
        return sampled(stored, noise, self.scale)

    @torch.no_grad()
    def pixels(self, x: Tensor) -> Tensor:
        """Images are decoded one by one, so that none depends on those beside it."""
        network = self._network(x.device)
        with torch.autocast(x.device.type, enabled=False):
            images = [network.decode(z.float() / self.scale).sample for z in x.split(1)]
        return torch.cat(images)


def open_vae(path: Path) -> KLVAE:
    """The codec of the VAE at `path`: its own channels and factor, and its scale where the files say it.

    Raises:
        CheckpointError: absent, damaged, no KL autoencoder, or with code in it.
        ResourceError: diffusers is not installed.
    """
    loaded = _load(os.path.realpath(os.path.expanduser(path)))
    return KLVAE(str(path), loaded.channels, loaded.factor, SCALE if loaded.scale is None else loaded.scale)
