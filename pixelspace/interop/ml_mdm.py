"""ml-mdm's Matryoshka networks: their configuration, their published weights, and the three released ones.

Parameter names are ours as they are; only the configuration is translated. What it does not say beside the weights, the
width of the text, is told by their shapes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from torch import Tensor

from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig, UNetText
from pixelspace.backbones.unet_body import Micro, UNetBody, UNetLevel
from pixelspace.config import nearest, problem
from pixelspace.errors import CheckpointError, UserError
from pixelspace.foreign import Arguments, read_pickle, read_safetensors
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.noise.tables import SquaredCosine
from pixelspace.sampling.generate import Sampling
from pixelspace.text.pretrained import Pretrained

Network = UNetConfig | NestedUNetConfig

_MAX_LEVELS = 16
# What the configurations of the released networks say beside the networks: all have one table, and the one of three
# levels another power.
_TABLE = SquaredCosine(1000)
_PROCESS = Process(VPV(), clock=TableIndex(_TABLE))
_SAMPLING = Sampling("euler_ancestral", steps=250, levels=_TABLE, threshold="clip")
_POWERS = {1: 1.0, 2: 1.0, 3: 2.0}
# What the released networks read: they attend to padding, and there is as much of it as makes a prompt and its negative
# prompt equally long.
_TEXT = Pretrained("google/flan-t5-xl", length=128, fill=False, precision="fp32", spaces="mdm")

# Every key with its default, as upstream's. What is in _IGNORED says how to train, or what follows from the rest.
_LEVEL: dict[str, Any] = {
    "num_resnets_per_resolution": "2",
    "temporal_dim": None,
    "attention_levels": "2,3",
    "num_attention_layers": "1",
    "num_temporal_attention_layers": None,
    "conditioning_feature_dim": -1,
    "conditioning_feature_proj_dim": -1,
    "num_lm_head_layers": 0,
    "masked_cross_attention": 1,
    "resolution_channels": "128,256,256,512,1024",
    "micro_conditioning": None,
    "temporal_mode": False,
    "temporal_spatial_ds": False,
    "temporal_positional_encoding": False,
    "resnet_config": {},
}
_INNERMOST = {**_LEVEL, "skip_mid_blocks": False, "skip_cond_emb": False}
_NESTED = {
    **_LEVEL,
    "skip_mid_blocks": True,
    "skip_cond_emb": True,
    "inner_config": None,
    "skip_inner_unet_input": False,
    "skip_normalization": False,
    "interp_conditioning": False,
}
_RESNET: dict[str, Any] = {"num_groups_norm": 32, "dropout": 0.0, "use_attention_ffn": False}
_IGNORED = frozenset("nesting initialize_inner_with_pretrained freeze_inner_unet num_channels output_channels".split())
# Where classes in a training checkpoint come from; of all of them only the settings they held are read.
_MODULES = frozenset("ml_mdm config models diffusion samplers reader language_models distributed pathlib numpy".split())
_UNUSED = re.compile(r"(inner_unet\.)*interp_layer[12]\.(weight|bias)")  # made and never called, upstream


_ENDS = {0: [256, 256], 1: [64, 256], 2: [32, 256]}  # first widths outside and inside, by depth, of those released


@dataclass(frozen=True, slots=True)
class Described:
    """What a checkpoint holds, as our values, and its tensors by our names. `text` is what read for the released
    networks (None: this one reads no text)."""

    backbone: Network
    process: Process
    sampling: Sampling
    pyramid: Pyramid
    size: tuple[int, int]
    weights: dict[str, Tensor]
    text: Pretrained | None = None


def _text64() -> UNetConfig:
    levels = (UNetLevel(256, 2), UNetLevel(512, 2, attention=1), UNetLevel(768, 2, attention=5))
    body = UNetBody(levels, time_width=1024, ffn=True, micro=(Micro("scale", 64.0),))
    return UNetConfig(body, text=UNetText(2048, proj=2048))


def _round(inner: Network, widths: tuple[int, int, int], scale: float, normalise: bool) -> NestedUNetConfig:
    levels = tuple(UNetLevel(width, blocks) for width, blocks in zip(widths, (2, 2, 1), strict=True))
    return NestedUNetConfig(UNetBody(levels, time_width=1024, micro=(Micro("scale", scale),)), inner, normalise)


def released(size: int) -> Network:
    """The network of the published weights for images of 64, 256 or 1024 pixels a side.

    Raises:
        UserError: another size.
    """
    networks = {
        64: _text64(),
        256: _round(_text64(), (64, 128, 256), 256.0, False),
        1024: _round(_round(_text64(), (64, 128, 256), 256.0, True), (32, 32, 64), 1024.0, False),
    }
    if size not in networks:
        raise UserError(f"ml-mdm: no weights were released for {size} pixels; there are 64, 256 and 1024")
    return networks[size]


def _numbers(given: Any, key: str, count: int | None = None) -> tuple[int, ...]:
    """A list, or what a string says between its commas; one number stands for `count` of them."""
    items = [given] if isinstance(given, int) else given.split(",") if isinstance(given, str) else given
    try:
        numbers = tuple(int(item) for item in items if str(item).strip())
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: expected whole numbers, as '2,2,1' or in a list, found {given!r}") from error
    if count is not None and len(numbers) == 1:
        return numbers * count
    if count is not None and len(numbers) != count:
        raise UserError(f"{key}: expected one number, or one for each of {count} resolutions, found {given!r}")
    return numbers


def _micros(given: str | None, key: str) -> tuple[Micro, ...]:
    if given in (None, "", "None"):
        return ()
    try:
        pairs = [(name.strip(), float(default)) for name, default in (item.split(":") for item in given.split(","))]
    except (AttributeError, ValueError) as error:
        raise UserError(f"{key}: expected 'name:default,...', found {given!r}") from error
    return tuple(Micro(name, default) for name, default in pairs)


def _opened(found: Any) -> Any:
    """What a pickled object held by name, without its class."""
    return found.values if isinstance(found, Arguments) else found


def _complete(given: Any, defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UserError(
            f"{where.rstrip('.') or 'config'}: expected the settings of a network, found {type(given).__name__}"
        )
    for key in given:
        if key not in defaults and key not in _IGNORED:
            raise UserError(f"{where}{key}: no such setting of an ml-mdm network; {nearest(str(key), defaults)}")
    return {**defaults, **given}


def _body(config: Mapping[str, Any], where: str) -> UNetBody:
    resnet = _complete(_opened(config["resnet_config"]) or {}, _RESNET, f"{where}resnet_config.")
    widths = _numbers(config["resolution_channels"], f"{where}resolution_channels")
    n = len(widths)
    blocks, layers = (
        _numbers(config[key], where + key, n) for key in ("num_resnets_per_resolution", "num_attention_layers")
    )
    attended = _numbers(config["attention_levels"], f"{where}attention_levels")
    over_time, temporal = config["num_temporal_attention_layers"], (0,) * n
    if over_time is not None and config["temporal_mode"] and not config["temporal_spatial_ds"]:
        temporal = _numbers(over_time, f"{where}num_temporal_attention_layers")
        if len(temporal) != n:
            raise UserError(f"{where}num_temporal_attention_layers: expected {n} numbers, found {over_time!r}")
    return UNetBody(
        levels=tuple(UNetLevel(widths[i], blocks[i], layers[i] if i in attended else 0, temporal[i]) for i in range(n)),
        time_width=config["temporal_dim"] or 0,
        groups=resnet["num_groups_norm"],
        ffn=bool(resnet["use_attention_ffn"]),
        dropout=float(resnet["dropout"]),
        micro=_micros(config["micro_conditioning"], f"{where}micro_conditioning"),
    )


def _positive(number: Any) -> int:
    return number if isinstance(number, int) and number > 0 else 0


def _network(given: Any, where: str, read: int, width: int) -> Network:
    """`read` is the width of the text as it comes, and `width` what the levels outside take it for (0: no text)."""
    given = _opened(given)
    nested = isinstance(given, Mapping) and given.get("inner_config") is not None
    if where.count(".") > _MAX_LEVELS:
        raise UserError(f"{where}inner_config: more than {_MAX_LEVELS} levels")
    config = _complete(given, _NESTED if nested else _INNERMOST, where)
    proj = _positive(config["conditioning_feature_proj_dim"]) if width else 0
    body, temporal = _body(config, where), bool(config["temporal_mode"])
    if config["temporal_spatial_ds"] and not temporal:
        raise UserError(f"{where}temporal_spatial_ds: needs temporal_mode")
    if not nested:
        if temporal:
            raise UserError(f"{where}temporal_mode: belongs to networks with an inner_config; the original fails, too")
        if read != width:
            raise UserError(
                f"{where}conditioning_feature_dim: the text comes with {read} numbers a token, and the projection "
                f"outside makes this network expect {width}; the original fails, too"
            )
        text, pooled = None, not config["skip_cond_emb"]
        if width:
            depth, masked = config["num_lm_head_layers"], bool(config["masked_cross_attention"])
            text = UNetText(width, proj, depth, masked, pooled=pooled)
        return UNetConfig(body, not config["skip_mid_blocks"], text)
    for key, needed in (("skip_mid_blocks", True), ("skip_cond_emb", True), ("skip_inner_unet_input", False)):
        if bool(config[key]) != needed:
            raise UserError(f"{where}{key}: must be {str(needed).lower()} in a network with an inner_config")
    inner = _network(config["inner_config"], f"{where}inner_config.", read, proj or width)
    if width and any(level.attention for level in body.levels) and (proj or width) != inner.text_inner:
        raise UserError(
            f"{where}attention_levels: attention to text of {proj or width} numbers a token, and the innermost network "
            f"makes it {inner.text_inner}; the original fails, too"
        )
    return NestedUNetConfig(
        body,
        inner,
        normalise=not config["skip_normalization"],
        frames="" if not temporal else "space" if config["temporal_spatial_ds"] else "time",
        rotary=bool(config["temporal_positional_encoding"]),
    )


def read_config(config: Mapping[str, Any], text_width: int = 0) -> Network:
    """The UNet part of an original configuration, as our values. Text comes `text_width` wide where the configuration
    leaves that to the language model (0: there is none).

    Raises:
        UserError: an unknown key, or what cannot work, by its dotted path.
    """
    width = _positive(config.get("conditioning_feature_dim")) or text_width
    try:
        return _network(config, "", width, width)
    except pydantic.ValidationError as error:
        raise UserError(problem("config", error)) from error


def _settings_within(found: Any) -> Mapping[str, Any] | None:
    """The outermost settings of a network in what a training script was called with."""
    queue, seen = [found], set()
    while queue:
        one = _opened(queue.pop(0))
        if isinstance(one, Mapping) and id(one) not in seen:  # a file may say that it holds itself
            if "resolution_channels" in one:
                return one
            seen.add(id(one))
            queue += one.values()
    return None


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any] | None]:
    """The weights of a published file, training checkpoint or plain state dict, and the configuration beside them, if
    any. Which weights they are, averaged or raw, is the file's choice.

    Raises:
        CheckpointError: absent, damaged, with code in it, or without weights.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0], None
    data = read_pickle(path, inert=_MODULES)
    state = data.get("state_dict", data) if isinstance(data, dict) else None
    if not (isinstance(state, dict) and state) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        found = sorted(map(str, data))[:8] if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(f"{path}: expected 'state_dict' with a network's tensors, found {found}")
    return dict(state), _settings_within(data.get("args"))


def _text_width(weights: Mapping[str, Tensor], inside: str) -> int:
    names = (f"{inside}lm_proj.weight", f"{inside}cond_emb.weight")
    found = [weights[name] for name in names if name in weights]
    return found[0].shape[-1] if found else 0


def _size(backbone: Network) -> tuple[int, int]:
    """Of an image, or a frame of a clip. Where the network does not say what size it is for, that of the released
    coarsest level is taken, 64."""
    scale = next((int(micro.default) for micro in backbone.body.micro if micro.name == "scale"), 0)
    fits = scale and scale * backbone.tiles % backbone.multiple == 0
    side = scale if fits else 64 * backbone.pyramid[-1] // backbone.tiles
    return side, side


def read_model(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Described:
    """The network that `weights` are of: as `config` says, or else the released one of as many levels.

    Raises:
        UserError: a configuration that is not understood, or none for a network of more levels.
    """
    depth = max((re.match(r"(inner_unet\.)*", name).group().count(".") for name in weights), default=0)  # type: ignore[union-attr]
    if config is None:
        ends = [weights.get(f"{inside}conv_in.weight") for inside in ("", "inner_unet." * depth)]
        if [None if end is None else len(end) for end in ends] != _ENDS.get(depth):
            raise UserError("config: these weights are of no released network; give the original's configuration")
        backbone = released(64 * 4**depth)
    else:
        given = config["config"] if isinstance(config.get("config"), Mapping) else config
        backbone = read_config(given, _text_width(weights, "inner_unet." * depth))
        if len(backbone.pyramid) != depth + 1:
            raise UserError(f"config: describes {len(backbone.pyramid)} levels, and the weights are of {depth + 1}")
    return Described(
        backbone=backbone,
        process=_PROCESS,
        sampling=_SAMPLING,
        pyramid=Pyramid(backbone.pyramid, power=_POWERS.get(len(backbone.pyramid), 2.0), tiles=backbone.tiles),
        size=_size(backbone),
        weights={name: tensor for name, tensor in weights.items() if not _UNUSED.fullmatch(name)},
        text=_TEXT if backbone.text_widths else None,
    )
