"""Hourglass Diffusion Transformer (Crowson et al. 2024): a transformer on a pyramid of token grids.

Fine levels attend locally and only the coarsest globally, so that the cost grows linearly with pixels. Parameter names
and arithmetic follow k-diffusion's `image_transformer_v2`, so that its weights load as they are; where code and paper
differ (the direction of the skip interpolation) the code is followed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.nn.attention import (
    Backend,
    global_attention,
    neighborhood_attention,
    shifted_window_attention,
)
from pixelspace.nn.embed import FourierFeatures, label_rows
from pixelspace.nn.linear import Linear
from pixelspace.nn.mlp import FeedForward
from pixelspace.nn.norm import AdaRMSNorm, RMSNorm
from pixelspace.nn.resample import TokenMerge, TokenSplit, TokenSplitSkip
from pixelspace.nn.rope import AxialRoPE
from pixelspace.nn.text import CrossAttention, Text, TextInput
from pixelspace.types import BackboneConfig, Cond, Inside, ParamGroup, Shared

_MICRO_UNIT = 1024.0  # pixels: the Fourier features' projections are of unit variance


class Attention(ABC):
    """How the tokens of a level see each other."""

    head_dim: int

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, index: int) -> Tensor:
        """q, k, v (B, h, w, N, E) to the same; `index` is the layer's place in its level, down and up together."""

    @abstractmethod
    def keys(self, tokens: int) -> int:
        """How many keys a query meets on a grid of so many tokens."""

    def smallest_grid(self) -> int:
        """Tokens a side that the kind needs."""
        return 1

    def grid_multiple(self) -> int:
        """What the tokens a side must be a multiple of."""
        return 1


def _check_head_dim(head_dim: int) -> None:
    if head_dim < 8 or head_dim % 8:
        raise ValueError(f"head_dim must be a multiple of 8 (rotary embedding needs it), found {head_dim}")


@value
class Global(Attention):
    """Every token to every token."""

    head_dim: int = 64

    def __post_init__(self) -> None:
        _check_head_dim(self.head_dim)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, index: int) -> Tensor:
        return global_attention(q, k, v)

    def keys(self, tokens: int) -> int:
        return tokens


@value
class Neighborhood(Attention):
    """Every token to the kernel x kernel tokens round it (Hassani et al. 2023)."""

    head_dim: int = 64
    kernel: int = 7
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        _check_head_dim(self.head_dim)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, found {self.kernel}")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, index: int) -> Tensor:
        return neighborhood_attention(q, k, v, self.kernel, self.backend)

    def keys(self, tokens: int) -> int:
        return self.kernel**2

    def smallest_grid(self) -> int:
        return self.kernel


@value
class ShiftedWindow(Attention):
    """Within windows, which every other layer shifts by half (Liu et al. 2021)."""

    window: int
    head_dim: int = 64

    def __post_init__(self) -> None:
        _check_head_dim(self.head_dim)
        if self.window < 1:
            raise ValueError(f"window must be positive, found {self.window}")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, index: int) -> Tensor:
        return shifted_window_attention(q, k, v, self.window, self.window // 2 if index % 2 else 0)

    def keys(self, tokens: int) -> int:
        return self.window**2

    def grid_multiple(self) -> int:
        return self.window


@value
class Level:
    """One grid of the hourglass. An outer level has `depth` layers on the way down and as many on the way up.

    `attention` None leaves the feed-forward layers alone; `hidden` 0 means 3 width. With `cross` a layer of global
    attention also attends to text.
    """

    width: int
    depth: int
    attention: Attention | None
    hidden: int = 0
    dropout: float = 0.0
    cross: bool = False

    def __post_init__(self) -> None:
        if self.cross and not isinstance(self.attention, Global):
            raise ValueError("Level: cross is for levels of Global attention; on finer grids it costs too much")
        if self.width < 1 or self.depth < 0 or self.hidden < 0:
            raise ValueError(f"Level: needs width >= 1, depth >= 0, hidden >= 0, found {self}")
        if self.attention and self.width % self.attention.head_dim:
            raise ValueError(
                f"Level: width {self.width} is not a multiple of head_dim {self.attention.head_dim}; "
                f"the next valid widths are {_neighbours(self.width, self.attention.head_dim)}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Level: dropout must be in [0, 1), found {self.dropout}")

    @property
    def feed_forward(self) -> int:
        return self.hidden or 3 * self.width


def _neighbours(size: int, multiple: int) -> str:
    below = size // multiple * multiple
    return " and ".join(str(n) for n in (below, below + multiple) if n > 0)


@value
class HDiTConfig(BackboneConfig):
    """The whole network: levels from the finest to the coarsest, patch (height, width), conditioning.

    `num_classes` 0 means no classes; `mapping_cond` is the length of an extra conditioning vector (0: none);
    `mapping_hidden` 0 means 3 mapping_width. `text` (None: none) enters the mapping network, and levels with `cross`.
    `micro` names pairs of numbers to condition on: `size`, `corner`.
    """

    levels: tuple[Level, ...]
    channels: int = 3
    patch: tuple[int, int] = (4, 4)
    mapping_width: int = 256
    mapping_depth: int = 2
    mapping_hidden: int = 0
    mapping_dropout: float = 0.0
    mapping_cond: int = 0
    num_classes: int = 0
    text: Text | None = None
    micro: tuple[Literal["size", "corner"], ...] = ()

    def __post_init__(self) -> None:
        if self.text is None and any(level.cross for level in self.levels):
            raise ValueError("HDiTConfig: a level has cross=true, and the network no text; set text, too")
        if len(set(self.micro)) < len(self.micro):
            raise ValueError(f"HDiTConfig: micro names one twice: {self.micro}")
        if not self.levels:
            raise ValueError("HDiTConfig: levels is empty; give at least one Level")
        if min(self.channels, *self.patch, self.mapping_width) < 1 or self.mapping_width % 2:
            raise ValueError("HDiTConfig: channels and patch must be positive, mapping_width positive and even")
        if min(self.mapping_depth, self.mapping_hidden, self.mapping_cond, self.num_classes) < 0:
            raise ValueError("HDiTConfig: mapping_depth, mapping_hidden, mapping_cond, num_classes cannot be negative")
        if not 0 <= self.mapping_dropout < 1:
            raise ValueError(f"HDiTConfig: mapping_dropout must be in [0, 1), found {self.mapping_dropout}")

    @property
    def entry(self) -> tuple[int, int]:
        return self.channels * self.patch[0] * self.patch[1], self.levels[0].width

    @property
    def text_widths(self) -> tuple[int, int] | None:
        return None if self.text is None else (self.text.width, self.text.pooled)

    @property
    def inside(self) -> Inside | None:
        """It fits with square patches; finer levels know of text and classes by its features alone."""
        patch, across = self.patch
        return Inside(self.levels[0].width, patch, multiple=self._axis(0)[0]) if patch == across else None

    def build(self) -> "HDiT":
        """The network, with fresh weights."""
        return HDiT(self)

    def _axis(self, axis: int) -> tuple[int, int]:
        pixels = [self.patch[axis] * 2**i for i in range(len(self.levels))]  # a token of each level, in pixels
        kinds = [(level.attention, p) for level, p in zip(self.levels, pixels, strict=True) if level.attention]
        multiple = math.lcm(pixels[-1], *(kind.grid_multiple() * p for kind, p in kinds))
        smallest = max([multiple, *(kind.smallest_grid() * p for kind, p in kinds)])
        return multiple, -(-smallest // multiple) * multiple

    def check_size(self, height: int, width: int) -> None:
        """Refuses an image size that the levels cannot hold.

        Raises:
            UserError: naming the next valid sizes.
        """
        for name, size, axis in (("height", height, 0), ("width", width, 1)):
            multiple, smallest = self._axis(axis)
            if size % multiple or size < smallest:
                below = max(size // multiple * multiple, smallest)
                above = max(-(-size // multiple) * multiple, smallest)
                valid = f"{below} and {above}" if below != above else f"{above} and {above + multiple}"
                raise UserError(
                    f"image {name} {size}: this network needs a multiple of {multiple}, at least {smallest}; "
                    f"the next valid sizes are {valid}"
                )

    def macs(self, height: int, width: int, kept: int | None = None, tokens: int = 0) -> int:
        """Multiply-accumulates of one forward pass on one image, by closed form: linear maps and attention products."""
        p, m = self.patch[0] * self.patch[1], self.mapping_width
        grids = [height * width // p // 4**i for i in range(len(self.levels))]
        total = 2 * self.channels * p * self.levels[0].width * grids[0]
        total += self.text.macs(m, tokens) if self.text else 0
        total += (
            (2 + len(self.micro)) * m**2
            + self.mapping_cond * m
            + self.mapping_depth * 3 * m * (self.mapping_hidden or 3 * m)
        )
        for i, level in enumerate(self.levels):
            w, t = level.width, grids[i]
            layer = t * 3 * w * level.feed_forward + m * w
            if level.attention:
                layer += t * (4 * w**2 + 2 * w * level.attention.keys(t)) + m * w
            if level.cross and self.text:
                layer += t * (2 * w**2 + 2 * w * tokens) + 2 * tokens * self.text.inner * w + m * w
            total += layer * level.depth * (1 if i == len(self.levels) - 1 else 2)
        for i, (fine, coarse) in enumerate(pairwise(self.levels)):
            total += 8 * fine.width * coarse.width * grids[i + 1]
        return total


class SelfAttention(nn.Module):
    """Pre-norm residual self-attention with scaled cosine similarity."""

    def __init__(self, level: Level, attention: Attention, cond_width: int, index: int):
        super().__init__()
        width, num_heads = level.width, level.width // attention.head_dim
        self.attention, self.index, self.num_heads = attention, index % 2, num_heads  # equal layers are alike
        self.norm = AdaRMSNorm(width, cond_width)
        self.qkv_proj = Linear(width, 3 * width, bias=False)
        self.scale = nn.Parameter(torch.full((num_heads,), 10.0))
        self.pos_emb = AxialRoPE(num_heads, attention.head_dim)
        self.dropout = nn.Dropout(level.dropout)
        self.out_proj = Linear(width, width, bias=False)
        nn.init.zeros_(self.out_proj.weight)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        qkv = rearrange(self.qkv_proj(self.norm(x, cond)), "b h w (t n e) -> b h w t n e", t=3, n=self.num_heads)
        q, k, v = self.pos_emb.heads(qkv, self.scale)
        out = rearrange(self.attention(q, k, v, self.index), "b h w n e -> b h w (n e)")
        return x + self.out_proj(self.dropout(out))


class Layer(nn.Module):
    """Attention, where the level has it, to the image and to text (tokens, mask), then feed-forward."""

    def __init__(self, level: Level, cond_width: int, index: int, text_width: int):
        super().__init__()
        kind, width = level.attention, level.width
        self.self_attn = SelfAttention(level, kind, cond_width, index) if kind else None
        self.cross_attn = None
        if kind and level.cross:
            self.cross_attn = CrossAttention(AdaRMSNorm(width, cond_width), width, text_width, kind.head_dim)
        self.ff = FeedForward(AdaRMSNorm(level.width, cond_width), level.width, level.feed_forward, level.dropout)

    def forward(self, x: Tensor, cond: Tensor, *text: Tensor) -> Tensor:
        if self.self_attn is not None:
            x = self.self_attn(x, cond)
        if self.cross_attn is not None:
            x = self.cross_attn(x, cond, *text)
        return self.ff(x, cond)


class Mapping(nn.Module):
    """(B, M) to (B, M): the network between the embeddings and every norm."""

    def __init__(self, width: int, depth: int, hidden: int, dropout: float):
        super().__init__()
        self.in_norm = RMSNorm(width)
        self.blocks = nn.ModuleList(FeedForward(RMSNorm(width), width, hidden, dropout) for _ in range(depth))
        self.out_norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_norm(x)
        for block in self.blocks:
            x = block(x)
        return self.out_norm(x)


class HDiT(nn.Module):
    """(x (B, C, H, W), c_noise (B,), cond) to (B, C, H, W).

    Takes `aug` (B, 9; absent means unaugmented), `label` if it has classes, `text`, `text_mask` and `pooled` if it
    reads text, and what its config names of `mapping` (B, K), `size` and `corner`; other keys are ignored. Set
    `checkpointing` to recompute layers in the backward pass. Inside a pyramid it is the innermost network, and what it
    is conditioned on reaches the finer levels through its features alone.
    """

    def __init__(self, config: HDiTConfig):
        super().__init__()
        m, levels = config.mapping_width, config.levels
        self.config = config
        self.checkpointing = False
        some = ["label"] * (config.num_classes > 0) + ["mapping"] * (config.mapping_cond > 0)
        words = config.text.takes if config.text else ()
        self.needs = frozenset([*some, *words, *config.micro])
        self.takes = self.needs | {"aug"}
        self.patch_in = TokenMerge(config.channels, levels[0].width, config.patch)
        self.time_emb = FourierFeatures(1, m)
        self.time_in_proj = Linear(m, m, bias=False)
        self.aug_emb = FourierFeatures(9, m)
        self.aug_in_proj = Linear(m, m, bias=False)
        self.class_emb = nn.Embedding(config.num_classes + 1, m) if config.num_classes else None
        self.mapping_cond_in_proj = Linear(config.mapping_cond, m, bias=False) if config.mapping_cond else None
        self.text_in = TextInput(config.text, m) if config.text else None
        self.micro_emb = nn.ModuleDict({name: FourierFeatures(2, m) for name in config.micro})
        self.micro_in_proj = nn.ModuleDict({name: Linear(m, m, bias=False) for name in config.micro})
        self.mapping = Mapping(m, config.mapping_depth, config.mapping_hidden or 3 * m, config.mapping_dropout)

        def layers(level: Level, start: int = 0) -> nn.ModuleList:
            inner = config.text.inner if config.text else 0
            return nn.ModuleList(Layer(level, m, start + i, inner) for i in range(level.depth))

        outer, pairs = levels[:-1], list(pairwise(levels))
        self.down_levels = nn.ModuleList(layers(level) for level in outer)
        self.up_levels = nn.ModuleList(layers(level, level.depth) for level in outer)
        self.mid_level = layers(levels[-1])
        self.merges = nn.ModuleList(TokenMerge(fine.width, coarse.width) for fine, coarse in pairs)
        self.splits = nn.ModuleList(TokenSplitSkip(coarse.width, fine.width) for fine, coarse in pairs)
        self.out_norm = RMSNorm(levels[0].width)
        self.patch_out = TokenSplit(levels[0].width, config.channels, config.patch)
        nn.init.zeros_(self.patch_out.proj.weight)

    def units(self) -> list[nn.Module]:
        """The repeated layers, in order of use: the units of checkpointing and sharding."""
        down = [layer for level in self.down_levels for layer in level.children()]
        up = [layer for level in reversed(self.up_levels) for layer in level.children()]
        return [*down, *self.mid_level, *up]

    def param_groups(self) -> list[ParamGroup]:
        """The mapping network and the norms' modulations learn at a third of the rate; vectors and embeddings do not
        decay (k-diffusion)."""
        groups: dict[tuple[float, bool], list[str]] = {}
        embeddings = ("time_in_proj", "aug_in_proj", "class_emb", "mapping_cond_in_proj", "micro_in_proj")
        for name, parameter in self.named_parameters():
            slow = name.startswith("mapping.") or ".norm.linear." in name
            decay = parameter.ndim > 1 and not name.startswith(embeddings)
            groups.setdefault((1 / 3 if slow else 1.0, decay), []).append(name)
        return [ParamGroup(tuple(names), *key) for key, names in groups.items()]

    def _embed(self, c_noise: Tensor, cond: Cond, text: Tensor | None) -> Tensor:
        aug = cond.get("aug")
        aug = c_noise.new_zeros(c_noise.shape[0], 9) if aug is None else aug
        out = self.time_in_proj(self.time_emb(c_noise[:, None])) + self.aug_in_proj(self.aug_emb(aug))
        if self.class_emb is not None:
            out = out + label_rows(self.class_emb.weight, cond["label"])
        if self.mapping_cond_in_proj is not None:
            out = out + self.mapping_cond_in_proj(cond["mapping"])
        if text is not None:
            out = out + text
        for name, project in self.micro_in_proj.items():
            out = out + project(self.micro_emb[name](cond[name] / _MICRO_UNIT))
        return self.mapping(out)

    def _check(self, x: Tensor, cond: Cond) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise UserError(f"expected x (B, {self.config.channels}, H, W), found {tuple(x.shape)}")
        self.config.check_size(*x.shape[2:])
        for key in sorted(self.needs - cond.keys()):
            raise UserError(f"this network needs cond[{key!r}]; found {sorted(cond) or 'nothing'}")

    def _run(self, layers: Iterable[nn.Module], again: bool, x: Tensor, *given: Tensor) -> Tensor:
        for layer in layers:
            x = checkpoint(layer, x, *given, use_reentrant=False) if again else layer(x, *given)
        return x

    def shared(self, cond: Cond, again: bool) -> Shared:
        """Nothing but whether layers are recomputed: finer levels of a pyramid see its features alone."""
        return Shared(again=again)

    def nested(
        self, xs: Sequence[Tensor], c_noise: Tensor, cond: Cond, shared: Shared, features: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """As the innermost level of a pyramid: its image, and the features (B, D, h, w) that it came of; `features` of
        the finer level enter beside its patches."""
        (x,), again = xs, shared.again
        *text, summary = self.text_in(cond) if self.text_in is not None else (None,)
        given = self._embed(c_noise, cond, summary), *text
        x = self.patch_in(rearrange(x, "b c h w -> b h w c"))
        x = x if features is None else x + rearrange(features, "b d h w -> b h w d")
        skips = []
        for layers, merge in zip(self.down_levels, self.merges, strict=True):
            x = self._run(layers.children(), again, x, *given)
            skips.append(x)
            x = merge(x)
        x = self._run(self.mid_level, again, x, *given)
        for layers, split, skip in zip(reversed(self.up_levels), reversed(self.splits), reversed(skips), strict=True):
            x = self._run(layers.children(), again, split(x, skip), *given)
        out = rearrange(self.patch_out(self.out_norm(x)), "b h w c -> b c h w")
        return [out], rearrange(x, "b h w d -> b d h w")

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        if not torch.compiler.is_compiling():
            self._check(x, cond)
        again = self.checkpointing and torch.is_grad_enabled()
        (out,), _ = self.nested([x], c_noise, cond, self.shared(cond, again), None)
        return out
