"""Matryoshka Diffusion Models (Gu et al. 2024): UNets in one another, which denoise all levels of a pyramid at once.

A finer level's middle is the network of the coarser ones: it hands its features in and takes theirs back, each through
a convolution that is 0 in a fresh network, so that the inner network then behaves as it does alone. Parameter names and
arithmetic follow ml-mdm, so that its weights load as they are.

A clip is one big image, whose tiles are its frames row by row. A level of `frames="time"` has whole frames and halves
their number from grid to grid, down to the one that its inner network sees; round it, one of `frames="space"` halves
the size of every frame.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelspace.backbones.unet_body import Body, UNetBody, check_inputs, check_multiple, grouped
from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.nn.conv import zeroed
from pixelspace.nn.frames import tiled, untiled
from pixelspace.nn.layout import laid_out
from pixelspace.types import BackboneConfig, Cond, Inside, ParamGroup, Shared


@value
class NestedUNetConfig(BackboneConfig):
    """One level round `inner`, which reads text and classes for all: another level, a UNet, or a transformer that fits.

    With `normalise` the level's image is divided by its standard deviation. `frames` says what the grids of a level on
    clips halve, their size or number; with `rotary` attention over time knows the order of frames.
    """

    body: UNetBody
    inner: BackboneConfig
    normalise: bool = True
    frames: Literal["", "space", "time"] = ""
    rotary: bool = False

    def __post_init__(self) -> None:
        inner, levels = self.inner, self.body.levels
        if inner.inside is None:
            raise ValueError(f"NestedUNetConfig: a {type(inner).__name__} cannot be inner, inside a pyramid")
        if inner.channels != self.channels:
            raise ValueError(f"NestedUNetConfig: {self.channels} channels round an inner network of {inner.channels}")
        if inner.inside.emb not in (0, self.body.time):
            raise ValueError(
                f"NestedUNetConfig: text and classes stand beside the time of every level, so their widths must be "
                f"equal; found {self.body.time} round {inner.inside.emb}: set time_width"
            )
        if self.frames != "time" and any(level.temporal for level in levels):
            raise ValueError("NestedUNetConfig: temporal layers need frames='time'")
        if self.frames and inner.inside.text and any(level.attention for level in levels):
            raise ValueError("NestedUNetConfig: a level of frames cannot attend to text; set attention to 0 there")
        nested = isinstance(inner, NestedUNetConfig)
        if self.frames == "time" and (len(levels) % 2 == 0 or (nested and inner.frames != "time")):
            raise ValueError(
                "NestedUNetConfig: a level with frames='time' needs 3, 5, 7, ... grids, which leave a quarter, a "
                "sixteenth, ... of its frames, and no level inside it that is not of time, too"
            )
        if not self.frames and inner.tiles > 1:
            raise ValueError("NestedUNetConfig: round a network of clips, frames must be 'space' or 'time'")
        if self.frames == "space" and not (nested and inner.frames == "time"):
            raise ValueError("NestedUNetConfig: frames='space' needs an inner network with frames='time'")

    @property
    def channels(self) -> int:  # type: ignore[override]
        return self.body.channels

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        return self.inner.num_classes

    @property
    def text_widths(self) -> tuple[int, int] | None:
        return self.inner.text_widths

    @property
    def _within(self) -> Inside:
        assert self.inner.inside is not None
        return self.inner.inside

    @property
    def text_inner(self) -> int:
        """The width of a token that layers attend to; 0: there is no text."""
        return self._within.text

    @property
    def entry(self) -> tuple[int, int]:
        return self.channels, self.body.levels[0].width

    @property
    def ratio(self) -> int:
        """How much smaller the inner network's image is, a side."""
        halvings = len(self.body.levels) - 1
        return 2 ** (halvings // 2 if self.frames == "time" else halvings)

    @property
    def pyramid(self) -> tuple[int, ...]:
        return (1, *(self.ratio * scale for scale in self.inner.pyramid))

    @property
    def sides(self) -> tuple[int, int]:
        """How many frames a side of a clip has at this level's finest grid, and at its coarsest; 1: it is no clip."""
        if not self.frames:
            return 1, 1
        return self.inner.tiles * (self.ratio if self.frames == "time" else 1), self.inner.tiles

    @property
    def tiles(self) -> int:
        return self.sides[0]

    @property
    def inside(self) -> Inside:
        return replace(self._within, width=self.body.levels[0].width, patch=1, multiple=self.multiple)

    @property
    def multiple(self) -> int:
        """What a side of the image must be a multiple of."""
        halved = self.frames == "space" or any(level.temporal for level in self.body.levels)
        frame = self.sides[0] * ((self.ratio if self.frames == "space" else 2) if halved else 1)
        return math.lcm(self.ratio * self._within.multiple, frame)

    @property
    def positions(self) -> dict[str, tuple[int, int]]:
        return {f"inner_unet.{name}": grid for name, grid in self.inner.positions.items()}

    def build(self) -> "NestedUNet":
        """The network, with fresh weights."""
        return NestedUNet(self)

    def check_size(self, height: int, width: int) -> None:
        """Refuses an image size that the levels cannot hold.

        Raises:
            UserError: naming the next valid sizes.
        """
        check_multiple(height, width, self.multiple, self.tiles)
        try:
            self.inner.check_size(height // self.ratio, width // self.ratio)
        except UserError as error:
            size = f"{height // self.tiles}x{width // self.tiles}"
            raise UserError(f"a pyramid of {self.pyramid} for {size}: inside, {error}") from error

    def macs(self, height: int, width: int, kept: int | None = None, tokens: int = 0) -> int:
        """Multiply-accumulates of one forward pass on one image of each level."""
        h, w, frames = height // self.ratio, width // self.ratio, self.sides[0] ** 2
        kernel = 9 if self._within.patch == 1 else 1
        adapters = 2 * kernel * self.body.levels[-1].width * self._within.width * h * w
        own = self.body.macs(height * width // frames, self.text_inner, tokens, frames, self.frames == "time")
        return own + adapters + self.inner.macs(h, w, None, tokens)


def normalised(x: Tensor) -> Tensor:
    """x (B, C, H, W), each divided by its standard deviation; the mean stays."""
    return x / x.std((1, 2, 3), keepdim=True)


class NestedUNet(Body):
    """(xs, c_noise (B,), cond) to as many images: x (B_k, C, H_k, W_k) for every level, the finest first.

    A level may have the first B_k samples of the batch only, or none, but no more than a coarser one; the last has all.
    Takes what its innermost network does, and the micro-conditions of all levels by name; other keys are ignored.
    """

    def __init__(self, config: NestedUNetConfig):
        super().__init__(config.body, config.text_inner, config.frames == "time", config.rotary)
        outside, inside, patch = config.body.levels[-1].width, config._within.width, config._within.patch
        self.config = config
        if patch == 1:
            self.in_adapter = zeroed(nn.Conv2d(outside, inside, 3, padding=1))
            self.out_adapter = zeroed(nn.Conv2d(inside, outside, 3, padding=1))
        else:
            self.in_adapter = zeroed(nn.Conv2d(outside, inside, patch, stride=patch))
            self.out_adapter = zeroed(nn.ConvTranspose2d(inside, outside, patch, stride=patch))
        self.inner_unet: Any = config.inner.build()
        self.needs: frozenset[str] = self.inner_unet.needs
        self.takes: frozenset[str] = self.inner_unet.takes | {micro.name for micro in config.body.micro}

    def units(self) -> list[nn.Module]:
        """The repeated parts, in order of use: the units of checkpointing and sharding."""
        return [*self.units_of(self.down_blocks), *self.inner_unet.units(), *self.units_of(self.up_blocks)]

    def param_groups(self) -> list[ParamGroup]:
        """The inner network's, and its own at one rate, of which vectors do not decay."""
        own = {name: p for name, p in self.named_parameters() if not name.startswith("inner_unet.")}
        groups = {(lr_factor, decay): names for names, lr_factor, decay in grouped(own)}
        for names, lr_factor, decay in self.inner_unet.param_groups():
            key, inside = (lr_factor, decay), tuple(f"inner_unet.{name}" for name in names)
            groups[key] = groups.get(key, ()) + inside
        return [ParamGroup(names, *key) for key, names in groups.items()]

    def shared(self, cond: Cond, again: bool) -> Shared:
        """What the innermost network tells all levels of text and class."""
        return self.inner_unet.shared(cond, again)

    def nested(
        self, xs: Sequence[Tensor], c_noise: Tensor, cond: Cond, shared: Shared, features: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """As a level of a pyramid: its images, the finest first, and the features that the first came of; `features` of
        the finer level enter beside its x."""
        x, *rest = xs
        count, (side, last) = x.shape[0], self.config.sides
        if count == 0:
            return [x, *self.inner_unet.nested(rest, c_noise, cond, shared, None)[0]], x
        given = self.given(c_noise, cond, shared, count)
        x = untiled(x, side)
        h = laid_out(self.conv_in(normalised(x) if self.config.normalise else x))
        h, skips = self.downwards(h if features is None else h + untiled(features, side), given)
        inwards = F.pad(self.in_adapter(tiled(h, last)), (0, 0, 0, 0, 0, 0, 0, rest[0].shape[0] - count))
        outs, outwards = self.inner_unet.nested(rest, c_noise, cond, shared, inwards)
        h = h + untiled(self.out_adapter(outwards[:count]), last)
        h = self.upwards(h, skips, given)
        return [tiled(self.head(h), side), *outs], tiled(h, side)

    def forward(self, xs: Sequence[Tensor], c_noise: Tensor, cond: Cond) -> list[Tensor]:
        if not torch.compiler.is_compiling():
            check_inputs(self.config, self.takes, self.needs, xs, c_noise, cond)
        outs, _ = self.nested(xs, c_noise, cond, self.shared(cond, self.again), None)
        return outs
