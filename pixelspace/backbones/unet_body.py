"""What the UNets of Matryoshka Diffusion Models (Gu et al. 2024) are made of: grids of residual blocks and attention on
the way down and back up, the embedding of time and micro-conditions, and an image at either end.

Parameter names and arithmetic follow ml-mdm, so that its weights load as they are; classes are ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.nn.conv import Downsample, ImageAttention, ResBlock, Upsample, zeroed
from pixelspace.nn.embed import timestep_features
from pixelspace.nn.frames import HEAD, TimeAttention, TimeResample
from pixelspace.nn.group_norm import GroupNorm
from pixelspace.types import BackboneConfig, Cond, ParamGroup, Shared

OTHER_KEYS = ("label", "text", "text_mask", "pooled", "size", "corner", "aug", "mapping")


@value
class UNetLevel:
    """One grid: `blocks` residual blocks on the way down and one more on the way up, each followed by `attention`
    layers within an image and `temporal` layers over the frames of a clip."""

    width: int
    blocks: int = 2
    attention: int = 0
    temporal: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.blocks) < 1 or min(self.attention, self.temporal) < 0:
            raise ValueError(f"UNetLevel: width and blocks must be positive, the others not negative, found {self}")


@value
class Micro:
    """A number (B,) that an image is conditioned on, by name, and what it is where nobody says.

    `scale` counts in pixels up to its default; all others in thousandths.
    """

    name: str
    default: float

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in OTHER_KEYS:
            raise ValueError(f"Micro: {self.name!r} cannot name a number; it must be a word other than {OTHER_KEYS}")
        if self.name == "scale" and self.default <= 0:
            raise ValueError(f"Micro: the default of scale must be positive, found {self.default}")

    def __call__(self, given: Tensor) -> Tensor:
        """As it is embedded."""
        return (given / self.default).clamp(max=1) * self.default if self.name == "scale" else 1000 * given


@value
class UNetBody:
    """What every level of a pyramid has: grids from the finest to the coarsest, each half the size of the one before.

    `time_width` 0 means 4 times the first width. The waves that stand for c_noise count in units of `noise_unit`: 1 is
    for the index of a table, and ln(sigma) / 4, of which all levels are a few, needs some 256. `groups` are of the
    norms of residual blocks, `attention_groups` of those of attention, which with `ffn` is followed by a feed-forward
    layer.
    """

    levels: tuple[UNetLevel, ...]
    channels: int = 3
    time_width: int = 0
    noise_unit: float = 1.0
    groups: int = 32
    heads: int = 8
    attention_groups: int = 32
    ffn: bool = False
    dropout: float = 0.0
    micro: tuple[Micro, ...] = ()

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("UNetBody: levels is empty; give at least one UNetLevel")
        if min(self.channels, self.groups, self.heads, self.attention_groups) < 1:
            raise ValueError("UNetBody: channels, groups, heads and attention_groups must be positive")
        if self.noise_unit <= 0:
            raise ValueError(f"UNetBody: noise_unit must be positive, found {self.noise_unit}")
        if self.time < 8 or self.time % 8:
            raise ValueError(f"UNetBody: the time's width must be a multiple of 8, found {self.time}; set time_width")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"UNetBody: dropout must be in [0, 1), found {self.dropout}")
        if len({micro.name for micro in self.micro}) < len(self.micro):
            raise ValueError(f"UNetBody: micro names one twice: {[micro.name for micro in self.micro]}")
        for level in self.levels:
            if level.width % self.groups:
                raise ValueError(f"UNetBody: width {level.width} is not a multiple of groups {self.groups}")
            if level.attention:
                self.check_attention(level.width)
            if level.temporal and level.width % HEAD:
                raise ValueError(f"UNetBody: attention over time needs a multiple of {HEAD}, found {level.width}")

    def check_attention(self, width: int) -> None:
        """Refuses a width that attention cannot have."""
        if width % self.heads or width % self.attention_groups:
            raise ValueError(
                f"UNetBody: attention of width {width} needs a multiple of heads {self.heads} and of "
                f"attention_groups {self.attention_groups}"
            )

    @property
    def time(self) -> int:
        return self.time_width or 4 * self.levels[0].width

    @property
    def down(self) -> list[list[int]]:
        """Channels into each residual block on the way down, by level."""
        before = [self.levels[0].width, *(level.width for level in self.levels[:-1])]
        return [[w, *[level.width] * (level.blocks - 1)] for w, level in zip(before, self.levels, strict=True)]

    @property
    def up(self) -> list[list[int]]:
        """Channels into each residual block on the way up, skips included, from the coarsest level to the finest."""
        skips, width, found = [self.levels[0].width], self.levels[-1].width, []
        for i, level in enumerate(self.levels):
            skips += [level.width] * (level.blocks + (i < len(self.levels) - 1))
        for level in reversed(self.levels):
            found.append([(width if r == 0 else level.width) + skips.pop() for r in range(level.blocks + 1)])
            width = level.width
        return found

    def block_macs(self, width_in: int, width: int, pixels: int, frames: int = 1) -> int:
        """Multiply-accumulates of one residual block."""
        convs = 9 * (width_in + width) * width + (width_in * width if width_in != width else 0)
        return convs * pixels * frames + 2 * width * self.time

    def attention_macs(self, width: int, pixels: int, frames: int, text_width: int, tokens: int) -> int:
        """Multiply-accumulates of one layer of attention."""
        own = pixels * ((12 if self.ffn else 4) * width**2 + 2 * width * pixels)
        cross = 2 * width * tokens * (text_width + pixels) if text_width else 0
        return frames * own + cross

    def macs(self, pixels: int, text_width: int, tokens: int, frames: int = 1, over_time: bool = False) -> int:
        """Multiply-accumulates of all but the middle, for frames of so many pixels, which are halved in number with
        `over_time`, in size without."""
        t, first = self.time, self.levels[0].width
        total = (1 + len(self.micro)) * (t // 4 + t) * t + 18 * self.channels * first * pixels * frames
        for i, (level, down, up) in enumerate(zip(self.levels, self.down, reversed(self.up), strict=True)):
            w, n, p = level.width, *((frames >> i, pixels) if over_time else (frames, pixels // 4**i))
            for width_in in (*down, *up):
                total += self.block_macs(width_in, w, p, n)
                total += level.attention * self.attention_macs(w, p, n, text_width, tokens)
                total += level.temporal * n * (p // 4 * (21 * w**2 + 2 * w * n) + 9 * w**2 * p)
            kernel = 3 if over_time else 9
            if i:
                total += kernel * w**2 * (2 * n * p if over_time else 4 * n * p)
            if i < len(self.levels) - 1:
                total += kernel * w**2 * (n * p // (2 if over_time else 4))
        return total


def check_multiple(height: int, width: int, multiple: int, tiles: int = 1) -> None:
    """Raises UserError for an image whose sides are no multiples, naming the next valid ones; where it is a clip of
    `tiles` x `tiles` frames, by which `multiple` can be divided, those of a frame."""
    for name, size in (("height", height), ("width", width)):
        if size % multiple or size < 1:
            below, step = (size // multiple * multiple or multiple) // tiles, multiple // tiles
            raise UserError(
                f"{'frame' if tiles > 1 else 'image'} {name} {size / tiles:g}: this network needs a multiple of "
                f"{step}; the next valid sizes are {below} and {below + step}"
            )


class Given(NamedTuple):
    """What the blocks of a level are given: the embedding (B, E) of time and conditions, and what all levels share."""

    emb: Tensor
    shared: Shared


def run(block: nn.Module, again: bool, x: Tensor, *given: Tensor | int | None) -> Tensor:
    """The block's output, recomputed in the backward pass where `again` says so."""
    return checkpoint(block, x, *given, use_reentrant=False) if again else block(x, *given)  # type: ignore[return-value]


class Block(nn.Module):
    """Residual blocks of one level in one direction, each with its attention, and what leads to the next level."""

    def __init__(
        self,
        body: UNetBody,
        level: UNetLevel,
        widths_in: Sequence[int],
        text_width: int,
        resample: nn.Module | None = None,
        rotary: bool = False,
    ):
        super().__init__()
        w, n = level.width, len(widths_in)
        self.resnets = nn.ModuleList(
            ResBlock(width_in, w, body.time, body.groups, body.dropout) for width_in in widths_in
        )
        self.attn = nn.ModuleList(
            ImageAttention(w, body.heads, body.attention_groups, text_width, body.ffn)
            for _ in range(n * level.attention)
        )
        self.t_attn = nn.ModuleList(TimeAttention(w, rotary) for _ in range(n * level.temporal))
        self.resample = resample

    def _of(self, layers: nn.ModuleList, r: int) -> nn.ModuleList:
        count = len(layers) // len(self.resnets)
        return layers[r * count : (r + 1) * count]  # type: ignore[return-value]

    def units(self) -> Iterator[nn.Module]:
        """In order of use."""
        for r, block in enumerate(self.resnets):
            yield from (block, *self._of(self.attn, r), *self._of(self.t_attn, r))

    def layer(self, r: int, x: Tensor, given: Given) -> Tensor:
        """The r-th residual block and its attention."""
        x = run(self.resnets[r], given.shared.again, x, given.emb)
        for layer in self._of(self.attn, r):
            x = run(layer, given.shared.again, x, given.shared.text, given.shared.mask)
        for layer in self._of(self.t_attn, r):
            x = run(layer, given.shared.again, x, x.shape[0] // given.emb.shape[0])
        return x

    def sampled(self, x: Tensor, given: Given) -> Tensor:
        """On the next level's grid, if there is one."""
        if isinstance(self.resample, TimeResample):
            return self.resample(x, x.shape[0] // given.emb.shape[0])
        return x if self.resample is None else self.resample(x)


class DownBlock(Block):
    """One level on the way to the middle: what it makes of x, and all that skips to the way back."""

    def forward(self, x: Tensor, given: Given) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for r in range(len(self.resnets)):
            skips.append(x := self.layer(r, x, given))
        if self.resample is not None:
            skips.append(x := self.sampled(x, given))
        return x, skips


class UpBlock(Block):
    """One level on the way back from the middle; takes its `skips` off the end."""

    def forward(self, x: Tensor, skips: list[Tensor], given: Given) -> Tensor:
        for r in range(len(self.resnets)):
            x = self.layer(r, torch.cat([x, skips.pop()], 1), given)
        return self.sampled(x, given)


class Body(nn.Module):
    """What every level of a pyramid has, and the plain network round its middle. Set `checkpointing` to recompute
    blocks in the backward pass."""

    def __init__(self, body: UNetBody, text_width: int, over_time: bool = False, rotary: bool = False):
        super().__init__()
        t, widths = body.time, [level.width for level in body.levels]
        self.body = body
        self.checkpointing = False
        self.temb_layer1, self.temb_layer2 = nn.Linear(t // 4, t), nn.Linear(t, t)
        self.cond_layers = nn.ModuleDict(
            {micro.name: nn.ModuleList([nn.Linear(t // 4, t), zeroed(nn.Linear(t, t))]) for micro in body.micro}
        )
        self.conv_in = nn.Conv2d(body.channels, widths[0], 3, padding=1)

        def resample(width: int, up: bool) -> nn.Module:
            if over_time:
                return TimeResample(width, up)
            return Upsample(width) if up else Downsample(width)

        last = len(widths) - 1
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, (level, widths_in) in enumerate(zip(body.levels, body.down, strict=True)):
            below = resample(level.width, False) if i < last else None
            self.down_blocks.append(DownBlock(body, level, widths_in, text_width, below, rotary))
        for i, (level, widths_in) in enumerate(zip(reversed(body.levels), body.up, strict=True)):
            above = resample(level.width, True) if i < last else None
            self.up_blocks.append(UpBlock(body, level, widths_in, text_width, above, rotary))
        self.norm_out = GroupNorm(body.groups, widths[0])
        self.conv_out = zeroed(nn.Conv2d(widths[0], body.channels, 3, padding=1))

    @property
    def again(self) -> bool:
        """Whether blocks are recomputed in the backward pass of this call."""
        return self.checkpointing and torch.is_grad_enabled()

    def units_of(self, blocks: nn.ModuleList) -> list[nn.Module]:
        """The repeated parts of these blocks, in order of use."""
        return [unit for block in blocks for unit in block.units()]  # type: ignore[operator]

    def _features(self, number: Tensor) -> Tensor:
        cosines, sines = timestep_features(number, self.body.time // 4).chunk(2, 1)
        return torch.cat([sines, cosines], 1).to(self.temb_layer1.weight.dtype)

    def given(self, c_noise: Tensor, cond: Cond, shared: Shared, count: int) -> Given:
        """For the first `count` samples: time, micro-conditions, and what all levels share."""
        c_noise, shared = c_noise[:count], shared.first(count)
        fine = torch.promote_types(c_noise.dtype, torch.float32)  # times may come as whole numbers
        emb = self.temb_layer2(F.silu(self.temb_layer1(self._features(self.body.noise_unit * c_noise))))
        if shared.emb is not None:
            emb = emb + shared.emb
        for micro in self.body.micro:
            inwards, outwards = self.cond_layers[micro.name]  # type: ignore[misc]
            number = cond.get(micro.name)
            number = torch.full_like(c_noise, micro.default, dtype=fine) if number is None else number[:count]
            emb = emb + outwards(F.silu(inwards(self._features(micro(number)))))
        return Given(emb, shared)

    def downwards(self, x: Tensor, given: Given) -> tuple[Tensor, list[Tensor]]:
        """From features (B, C, H, W) of the image to the coarsest grid, and all that skips to the way back."""
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, given)
            skips += more
        return x, skips

    def upwards(self, x: Tensor, skips: list[Tensor], given: Given) -> Tensor:
        """From the coarsest grid back to features of the image."""
        for block in self.up_blocks:
            x = block(x, skips, given)
        return x

    def head(self, x: Tensor) -> Tensor:
        """From features to the image."""
        return self.conv_out(F.silu(self.norm_out(x)))


def check_inputs(
    config: BackboneConfig,
    takes: frozenset[str],
    needs: frozenset[str],
    xs: Sequence[Tensor],
    c_noise: Tensor,
    cond: Cond,
) -> None:
    """Raises UserError for levels, times or conditions that do not fit a network or each other."""
    if len(xs) != len(config.pyramid):
        raise UserError(f"expected {len(config.pyramid)} levels, the finest first, found {len(xs)}")
    for i, (x, ratio) in enumerate(zip(xs, config.pyramid, strict=True)):
        if x.ndim != 4 or x.shape[1] != config.channels:
            raise UserError(f"expected x (B, {config.channels}, H, W) at level {i}, found {tuple(x.shape)}")
        if i == 0:
            config.check_size(*x.shape[2:])
        expected = tuple(side // ratio for side in xs[0].shape[2:])
        if tuple(x.shape[2:]) != expected:
            raise UserError(f"level {i}: expected {expected[0]}x{expected[1]}, found {x.shape[2]}x{x.shape[3]}")
        if len(x) < len(xs[max(i - 1, 0)]):
            raise UserError(f"level {i}: {len(x)} samples, fewer than the {len(xs[i - 1])} of the finer level")
    for key in sorted(needs - cond.keys()):
        raise UserError(f"this network needs cond[{key!r}]; found {sorted(cond) or 'nothing'}")
    count, (width, pooled) = len(xs[-1]), config.text_widths or (0, 0)
    shapes = {key: tuple(cond[key].shape) for key in takes & cond.keys()}
    text = (count, *shapes.get("text", ())[1:2], width)
    expected = {"text": text, "text_mask": text[:2], "pooled": (count, pooled), "aug": (count, 9)}
    expected |= {"size": (count, 2), "corner": (count, 2)}
    expected |= {key: (count, *shapes.get(key, ())[1:]) for key in ("label", "mapping")}
    for key, shape in {"c_noise": tuple(c_noise.shape), **shapes}.items():
        if shape != expected.get(key, (count,)):
            raise UserError(f"{key}: expected shape {expected.get(key, (count,))}, found {shape}")


def grouped(parameters: Mapping[str, Tensor]) -> list[ParamGroup]:
    """One rate for all; vectors and class embeddings do not decay."""
    learnt = {name: p for name, p in parameters.items() if p.requires_grad}
    decays = {name for name, p in learnt.items() if p.ndim > 1 and not name.endswith("class_emb.weight")}
    return [ParamGroup(tuple(n for n in learnt if (n in decays) == decay), 1.0, decay) for decay in (True, False)]
