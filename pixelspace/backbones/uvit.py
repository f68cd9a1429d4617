"""Shallow-UViT and UViT round one core (Vasconcelos et al. 2024; Hoogeboom et al. 2023).

The core is a transformer on a grid of 16 x 16 tokens that reads the text; it and the embeddings it depends on have the
same names in both networks, `core.*` and `embed.*`, and that is what growth carries over. Levels of a UViT are numbered
from the core outwards, so that one more round a trained network leaves all names as they are.

No code of Greedy Growing is public: blocks and widths are simple diffusion's, where its secondary sources agree. Text
cross-attention, the entry's width and the seam are ours.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.nn.attention import attend
from pixelspace.nn.conv import Pointwise, zeroed
from pixelspace.nn.embed import label_rows, timestep_features
from pixelspace.nn.group_norm import GroupNorm
from pixelspace.nn.layout import channels_last
from pixelspace.nn.linear import Linear
from pixelspace.nn.norm import RMSNorm
from pixelspace.nn.text import Text, TextInput
from pixelspace.types import BackboneConfig, Cond, Inside, ParamGroup, Shared

TIME_FEATURES = 256
_NOISE_UNIT = 256.0  # c_noise spans about 4: the features' fastest wave then turns every 0.025 of it
_MLP = 4  # times the width


@value
class CoreConfig:
    """A transformer of `depth` blocks on `grid` (down, across) tokens, with the embeddings that condition it.

    The condition has `cond_width` numbers: noise level, text and class. With `text` every block attends to it. A fresh
    core is the identity but for its positions and last norm; with `identity` false a random map, which as a control
    tells what a frozen core has learnt from that it is frozen.
    """

    width: int
    depth: int
    head_dim: int = 64
    grid: tuple[int, int] = (16, 16)
    cond_width: int = 1024
    text: Text | None = None
    num_classes: int = 0
    dropout: float = 0.0
    identity: bool = True

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.head_dim, *self.grid, self.cond_width) < 1 or self.num_classes < 0:
            raise ValueError(f"CoreConfig: all sizes must be positive, num_classes not negative, found {self}")
        if self.width % self.head_dim:
            raise ValueError(f"CoreConfig: width {self.width} is not a multiple of head_dim {self.head_dim}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"CoreConfig: dropout must be in [0, 1), found {self.dropout}")

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for one image with so many tokens of text, embeddings included."""
        n, d, e = self.grid[0] * self.grid[1], self.width, self.cond_width
        block = n * ((4 + 2 * _MLP) * d**2 + 2 * n * d) + 2 * _MLP * d * e
        total = (TIME_FEATURES + e) * e
        if self.text:
            block += n * (2 * d**2 + 2 * tokens * d) + 2 * tokens * self.text.inner * d
            total += self.text.macs(e, tokens)
        return total + self.depth * block


def _conv_macs(width: int, cond_width: int, pixels: int) -> int:
    return 18 * width**2 * pixels + 2 * width * cond_width


def _groups(width: int) -> int:
    return math.gcd(32, width)


class _Grid(BackboneConfig):
    """What both networks share: the core decides the conditions, and the grid the one size of images."""

    core: CoreConfig

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        return self.core.num_classes

    @property
    def text_widths(self) -> tuple[int, int] | None:
        text = self.core.text
        return None if text is None else (text.width, text.pooled)

    @property
    def positions(self) -> dict[str, tuple[int, int]]:
        return {"core.position": self.core.grid}

    @property
    @abstractmethod
    def token(self) -> int:
        """Pixels a side of one token of the core."""

    @property
    def multiple(self) -> int:
        """What both sides of the image are multiples of."""
        return math.gcd(*self.core.grid) * self.token

    def check_size(self, height: int, width: int) -> None:
        """Refuses every size but its own.

        Raises:
            UserError: naming both, and what would reach the size.
        """
        for name, found, tokens in zip(("height", "width"), (height, width), self.core.grid, strict=True):
            if found != tokens * self.token:
                raise UserError(
                    f"image {name} {found}: a core of {tokens} tokens, each of {self.token} pixels, does not reach it; "
                    f"{name} must be {tokens * self.token} in model space, or change levels, patch, stride or core.grid"
                )


@value
class ShallowUViTConfig(_Grid):
    """A core for images that one convolution of `stride` brings to its grid, with one residual block each way, of
    `width` channels (0: the core's, but 512 from 2048 on; the rule is ours)."""

    core: CoreConfig
    stride: int = 4
    width: int = 0
    channels: int = 3

    def __post_init__(self) -> None:
        if self.stride < 1 or self.width < 0 or self.channels < 1:
            raise ValueError(f"ShallowUViTConfig: stride and channels must be positive, found {self}")

    @property
    def shallow_width(self) -> int:
        return self.width or (self.core.width if self.core.width < 2048 else 512)

    @property
    def token(self) -> int:
        return self.stride

    @property
    def entry(self) -> tuple[int, int]:
        return self.channels * self.stride**2, self.shallow_width

    @property
    def inside(self) -> Inside:
        """Finer levels know of text and classes by its features alone."""
        return Inside(self.shallow_width, self.stride, multiple=self.multiple)

    def build(self) -> "ShallowUViT":
        """The network, with fresh weights."""
        return ShallowUViT(self)

    def macs(self, height: int, width: int, kept: int | None = None, tokens: int = 0) -> int:
        """Multiply-accumulates of one forward pass on one image: linear maps, convolutions and attention."""
        w, n = self.shallow_width, self.core.grid[0] * self.core.grid[1]
        joints = 0 if w == self.core.width else 2 * w * self.core.width * n
        ends = 2 * self.channels * self.stride**2 * w * n
        return self.core.macs(tokens) + ends + joints + 2 * _conv_macs(w, self.core.cond_width, n)


@value
class UViTConfig(_Grid):
    """A core in a convolutional U-Net with `widths` channels, from the finest grid to the one next to the core.

    Each level has `blocks` residual blocks on the way in and one more on the way out. `seam` stands where the encoder
    meets the core: nothing, an affine map of each channel, or an RMS norm with learnt scale.
    """

    core: CoreConfig
    widths: tuple[int, ...] = (128, 256, 512)
    patch: int = 2
    blocks: int = 2
    seam: Literal["none", "affine", "norm"] = "none"
    channels: int = 3

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.patch, self.blocks, self.channels) < 1:
            raise ValueError(f"UViTConfig: needs at least one width, and positive sizes, found {self}")

    @property
    def token(self) -> int:
        return self.patch * 2 ** len(self.widths)

    @property
    def entry(self) -> tuple[int, int]:
        return self.channels * self.patch**2, self.widths[0]

    @property
    def inside(self) -> Inside:
        """Finer levels know of text and classes by its features alone."""
        return Inside(self.widths[0], self.patch, multiple=self.multiple)

    def build(self) -> "UViT":
        """The network, with fresh weights."""
        return UViT(self)

    def macs(self, height: int, width: int, kept: int | None = None, tokens: int = 0) -> int:
        """Multiply-accumulates of one forward pass on one image: linear maps, convolutions and attention."""
        pixels = self.core.grid[0] * self.core.grid[1] * 4 ** len(self.widths)
        total = self.core.macs(tokens) + 2 * self.channels * self.patch**2 * self.widths[0] * pixels
        for outer, inner in zip(self.widths, (*self.widths[1:], self.core.width), strict=True):
            total += (2 * self.blocks + 1) * _conv_macs(outer, self.core.cond_width, pixels)
            pixels //= 4
            total += 2 * outer * inner * pixels
        return total


class Embedding(nn.Module):
    """c_noise (B,) and cond to the condition (B, E), and the text's tokens and mask where there is one."""

    def __init__(self, config: CoreConfig):
        super().__init__()
        e = config.cond_width
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, e), nn.SiLU(), nn.Linear(e, e))
        self.text = TextInput(config.text, e) if config.text else None
        self.label = nn.Embedding(config.num_classes + 1, e) if config.num_classes else None

    def forward(self, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        out, words = self.time(timestep_features(_NOISE_UNIT * c_noise, TIME_FEATURES)), []
        if self.text is not None:
            *words, summary = self.text(cond)
            out = out + summary
        if self.label is not None:
            out = out + label_rows(self.label.weight, cond["label"])
        return F.silu(out), *words


class Attention(nn.Module):
    """Attention of x (B, L, D) to itself, or to text of `text_width`, with queries and keys of unit RMS."""

    def __init__(self, width: int, head_dim: int, text_width: int | None = None):
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = Linear(width, width, bias=False)
        self.kv_proj = Linear(text_width or width, 2 * width, bias=False)
        self.out_proj = zeroed(Linear(width, width))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = self.q_proj(x), *self.kv_proj(context).chunk(2, -1)
        q, k, v = (rearrange(y, "b l (n e) -> b n l e", e=self.head_dim) for y in rows)
        q, k = (F.rms_norm(y, (self.head_dim,), eps=1e-6) for y in (q, k))
        return self.out_proj(rearrange(attend(q, k, v, mask, self.head_dim**-0.5), "b n l e -> b l (n e)"))


class Block(nn.Module):
    """Self-attention, attention to text (tokens, mask), and a feed-forward layer whose hidden units the condition
    scales and shifts; each pre-norm and residual, and the identity in a fresh network."""

    def __init__(self, config: CoreConfig):
        super().__init__()
        d, hidden = config.width, _MLP * config.width
        self.attn_norm = nn.LayerNorm(d)
        self.attn = Attention(d, config.head_dim)
        self.text_norm = nn.LayerNorm(d) if config.text else None
        self.text_attn = Attention(d, config.head_dim, config.text.inner) if config.text else None
        self.mlp_norm = nn.LayerNorm(d)
        self.up = Linear(d, hidden)
        self.film = zeroed(nn.Linear(config.cond_width, 2 * hidden))
        self.dropout = nn.Dropout(config.dropout)
        self.down = zeroed(Linear(hidden, d))

    def forward(self, x: Tensor, cond: Tensor, *text: Tensor) -> Tensor:
        normed = self.attn_norm(x)
        x = x + self.attn(normed, normed)
        if self.text_attn is not None and self.text_norm is not None:
            x = x + self.text_attn(self.text_norm(x), *text)
        scale, shift = self.film(cond)[:, None].chunk(2, -1)
        hidden = torch.addcmul(shift, F.silu(self.up(self.mlp_norm(x))), 1 + scale)
        return x + self.down(self.dropout(hidden))


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions of x (B, C, H, W), the condition between them; the identity in a fresh network."""

    def __init__(self, width: int, cond_width: int):
        super().__init__()
        self.norm1 = GroupNorm(_groups(width), width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = GroupNorm(_groups(width), width)
        self.film = zeroed(nn.Linear(cond_width, 2 * width))
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.film(cond)[:, :, None, None].chunk(2, 1)
        return x + self.conv2(F.silu(torch.addcmul(shift, h, 1 + scale)))


def _run(blocks: Iterable[nn.Module], x: Tensor, *given: Tensor, again: bool) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, *given, use_reentrant=False) if again else block(x, *given)
    return x


def joined(x: Tensor, skip: Tensor) -> Tensor:
    """The sum of x and what skipped to it, at the variance of one."""
    return (x + skip) / math.sqrt(2)


class Core(nn.Module):
    """x (B, D, h, w) on the core's grid to the same, under a condition (B, E) and text (tokens, mask)."""

    def __init__(self, config: CoreConfig):
        super().__init__()
        self.position = nn.Parameter(torch.randn(*config.grid, config.width) * 0.01)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        if not config.identity:
            for module in self.blocks.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()

    def forward(self, x: Tensor, *given: Tensor, again: bool) -> Tensor:
        h, w = self.position.shape[:2]
        tokens = (rearrange(x, "b d h w -> b h w d") + self.position).flatten(1, 2)
        tokens = self.norm(_run(self.blocks, tokens, *given, again=again))
        return rearrange(tokens, "b (h w) d -> b d h w", h=h, w=w)


def _pointwise(width_in: int, width_out: int, patch: int = 1) -> nn.Conv2d:
    if patch == 1:
        conv = Pointwise(width_in, width_out, bias=False)
    else:
        conv = nn.Conv2d(width_in, width_out, patch, stride=patch, bias=False)
    nn.init.normal_(conv.weight, std=(width_in * patch**2) ** -0.5)
    return conv


class Head(nn.Module):
    """x (B, C, h, w) to `channels` of p x p pixels for each place; zeros in a fresh network."""

    def __init__(self, width: int, channels: int, patch: int):
        super().__init__()
        self.norm = GroupNorm(_groups(width), width)
        self.proj = zeroed(Pointwise(width, channels * patch**2, bias=False))
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.proj(F.silu(self.norm(x))), self.patch)


class Shallow(nn.Module):
    """All of a Shallow-UViT that growth leaves behind."""

    def __init__(self, config: ShallowUViTConfig):
        super().__init__()
        w, d, e = config.shallow_width, config.core.width, config.core.cond_width
        self.patch = _pointwise(config.channels, w, config.stride)
        self.encoder = ResBlock(w, e)
        self.to_core = _pointwise(w, d) if w != d else nn.Identity()
        self.from_core = _pointwise(d, w) if w != d else nn.Identity()
        self.decoder = ResBlock(w, e)
        self.head = Head(w, config.channels, config.stride)


class Level(nn.Module):
    """One grid of a UViT: residual blocks on the way in and out, and the maps to and from the next one inside."""

    def __init__(self, width: int, inner: int, blocks: int, cond_width: int):
        super().__init__()
        self.encoder = nn.ModuleList(ResBlock(width, cond_width) for _ in range(blocks))
        self.to_inner = _pointwise(width, inner)
        self.from_inner = _pointwise(inner, width)
        self.decoder = nn.ModuleList(ResBlock(width, cond_width) for _ in range(blocks + 1))


class Affine(nn.Module):
    """x (B, D, h, w) scaled and shifted by channel; the identity in a fresh network."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift[:, None, None], x, self.scale[:, None, None])


class ChannelNorm(RMSNorm):
    """RMS norm over the channels of x (B, D, h, w), with a learnt scale."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


_SEAMS = {"affine": Affine, "norm": ChannelNorm}


class _Network(nn.Module):
    """What both networks share. Set `checkpointing` to recompute blocks in the backward pass.

    Inside a pyramid either is the innermost network, and what it is conditioned on reaches the finer levels through its
    features alone."""

    def __init__(self, config: ShallowUViTConfig | UViTConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False
        words = config.core.text.takes if config.core.text else ()
        self.needs = self.takes = frozenset([*words, *["label"] * (config.core.num_classes > 0)])
        self.embed = Embedding(config.core)
        self.core = Core(config.core)

    def param_groups(self) -> list[ParamGroup]:
        """One rate for all; vectors, embeddings and positions do not decay."""
        embeddings = ("core.position", "embed.time", "embed.label")
        names = [name for name, _ in self.named_parameters()]
        decays = {n for n, p in self.named_parameters() if p.ndim > 1 and not n.startswith(embeddings)}
        return [ParamGroup(tuple(n for n in names if (n in decays) == decay), 1.0, decay) for decay in (True, False)]

    def _check(self, x: Tensor, cond: Cond) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise UserError(f"expected x (B, {self.config.channels}, H, W), found {tuple(x.shape)}")
        self.config.check_size(*x.shape[2:])
        for key in sorted(self.takes - cond.keys()):
            raise UserError(f"this network needs cond[{key!r}]; found {sorted(cond) or 'nothing'}")

    def shared(self, cond: Cond, again: bool) -> Shared:
        """Nothing but whether blocks are recomputed: finer levels of a pyramid see its features alone."""
        return Shared(again=again)

    @abstractmethod
    def nested(
        self, xs: Sequence[Tensor], c_noise: Tensor, cond: Cond, shared: Shared, features: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """As the innermost level of a pyramid: its image, and the features (B, D, h, w) that it came of; `features` of
        the finer level enter beside its patches."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        if not torch.compiler.is_compiling():
            self._check(x, cond)
        again = self.checkpointing and torch.is_grad_enabled()
        (out,), _ = self.nested([x], c_noise, cond, self.shared(cond, again), None)
        return out


class ShallowUViT(_Network):
    """(x (B, C, H, W), c_noise (B,), cond) to (B, C, H, W): a core with next to nothing round it.

    Takes `label` if it has classes, and `text`, `text_mask` and `pooled` as its text says; other keys are ignored.
    """

    def __init__(self, config: ShallowUViTConfig):
        super().__init__(config)
        self.shallow = Shallow(config)

    def units(self) -> list[nn.Module]:
        """The repeated blocks, in order of use: the units of checkpointing and sharding."""
        return [self.shallow.encoder, *self.core.blocks, self.shallow.decoder]

    def nested(
        self, xs: Sequence[Tensor], c_noise: Tensor, cond: Cond, shared: Shared, features: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        (x,), again = xs, shared.again
        emb, *words = self.embed(c_noise, cond)
        x = channels_last(self.shallow.patch(x))
        skip = _run([self.shallow.encoder], x if features is None else x + features, emb, again=again)
        h = self.core(self.shallow.to_core(skip), emb, *words, again=again)
        h = joined(self.shallow.from_core(h), skip)
        h = _run([self.shallow.decoder], h, emb, again=again)
        return [self.shallow.head(h)], h


class UViT(_Network):
    """(x (B, C, H, W), c_noise (B,), cond) to (B, C, H, W): a core inside a convolutional encoder and decoder.

    Takes `label` if it has classes, and `text`, `text_mask` and `pooled` as its text says; other keys are ignored.
    """

    def __init__(self, config: UViTConfig):
        super().__init__(config)
        e, widths = config.core.cond_width, (config.core.width, *reversed(config.widths))
        self.patch = _pointwise(config.channels, config.widths[0], config.patch)
        self.levels = nn.ModuleList(Level(width, inner, config.blocks, e) for inner, width in pairwise(widths))
        self.seam = _SEAMS[config.seam](config.core.width) if config.seam != "none" else nn.Identity()
        self.head = Head(config.widths[0], config.channels, config.patch)

    @property
    def _outwards(self) -> list[Level]:
        return list(self.levels)  # type: ignore[arg-type]

    def units(self) -> list[nn.Module]:
        """The repeated blocks, in order of use: the units of checkpointing and sharding."""
        inwards = [block for level in reversed(self._outwards) for block in level.encoder]
        return [*inwards, *self.core.blocks, *(block for level in self._outwards for block in level.decoder)]

    def nested(
        self, xs: Sequence[Tensor], c_noise: Tensor, cond: Cond, shared: Shared, features: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        (x,), again = xs, shared.again
        emb, *words = self.embed(c_noise, cond)
        h, skips = channels_last(self.patch(x)), []
        h = h if features is None else h + features
        for level in reversed(self._outwards):
            skips.append(h)
            for block in level.encoder:
                skips.append(h := _run([block], h, emb, again=again))
            h = level.to_inner(F.avg_pool2d(h, 2))
        h = self.core(self.seam(h), emb, *words, again=again)
        for level in self._outwards:
            h = F.interpolate(level.from_inner(h), scale_factor=2.0, mode="nearest")
            for block in level.decoder:
                h = _run([block], joined(h, skips.pop()), emb, again=again)
        return [self.head(h)], h
