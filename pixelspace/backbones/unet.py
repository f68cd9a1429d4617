"""The UNet of Matryoshka Diffusion Models (Gu et al. 2024): alone, or the innermost network of a pyramid (`nested.py`),
which reads text and classes for all of its levels.

Parameter names and arithmetic follow ml-mdm, so that its weights load as they are; classes, which it lacks, are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pixelspace.backbones.unet_body import (
    Body,
    DownBlock,
    UNetBody,
    UNetLevel,
    check_inputs,
    check_multiple,
    grouped,
    run,
)
from pixelspace.config import value
from pixelspace.nn.conv import RowLayer
from pixelspace.nn.embed import label_rows
from pixelspace.nn.layout import laid_out
from pixelspace.nn.text import additive
from pixelspace.types import BackboneConfig, Cond, Inside, ParamGroup, Shared


@value
class UNetText:
    """How text of tokens `width` wide is read: brought to `proj` numbers each (0: left as they are), then by `depth`
    layers of self-attention that learn with the network.

    With `masked` attention leaves out what is no token; the released networks attend to it. Without `pooled` there is
    attention to the text alone, as it is, and no mean of it beside the time.
    """

    width: int
    proj: int = 0
    depth: int = 0
    masked: bool = False
    heads: int = 8
    pooled: bool = True

    def __post_init__(self) -> None:
        if min(self.width, self.heads) < 1 or min(self.proj, self.depth) < 0:
            raise ValueError("UNetText: width and heads must be positive, proj and depth not negative")
        if self.depth and self.inner % self.heads:
            raise ValueError(f"UNetText: the tokens' width {self.inner} is not a multiple of heads {self.heads}")
        if not self.pooled and (self.proj or self.depth):
            raise ValueError("UNetText: proj and depth belong to the pooled text; with pooled=false leave them 0")

    @property
    def inner(self) -> int:
        """The width of a token that layers attend to."""
        return self.proj or self.width

    def macs(self, out: int, tokens: int) -> int:
        """Multiply-accumulates of reading, and of a summary of `out` numbers."""
        d = self.inner
        layer = tokens * (12 * d**2 + 2 * d * tokens)
        return self.width * self.proj * tokens + self.depth * layer + d * out * self.pooled


@value
class UNetConfig(BackboneConfig):
    """The whole network. `middle` puts a residual block, attention and another residual block on the coarsest grid;
    `text` (None: none) and classes are added to the time's embedding, and layers of attention also attend to text.
    `squash` s bounds what comes out, s tanh(out / s) (0: nothing does); ml-mdm's model_output_scale."""

    body: UNetBody
    middle: bool = True
    text: UNetText | None = None
    num_classes: int = 0
    squash: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ValueError(f"UNetConfig: num_classes cannot be negative, found {self.num_classes}")
        if self.squash < 0:
            raise ValueError(f"UNetConfig: squash cannot be negative, found {self.squash}")
        if self.middle:
            self.body.check_attention(self.body.levels[-1].width)
        if any(level.temporal for level in self.body.levels):
            raise ValueError("UNetConfig: temporal layers belong to levels of a NestedUNetConfig with frames='time'")

    @property
    def channels(self) -> int:  # type: ignore[override]
        return self.body.channels

    @property
    def entry(self) -> tuple[int, int]:
        return self.channels, self.body.levels[0].width

    @property
    def text_widths(self) -> tuple[int, int] | None:
        return None if self.text is None else (self.text.width, 0)

    @property
    def text_inner(self) -> int:
        """The width of a token that layers attend to; 0: there is no text."""
        return 0 if self.text is None else self.text.inner

    @property
    def multiple(self) -> int:
        """What a side of the image must be a multiple of."""
        return 2 ** (len(self.body.levels) - 1)

    @property
    def inside(self) -> Inside:
        beside = self.num_classes > 0 or (self.text is not None and self.text.pooled)
        emb = self.body.time if beside else 0
        return Inside(self.body.levels[0].width, emb=emb, text=self.text_inner, multiple=self.multiple)

    def build(self) -> "UNet":
        """The network, with fresh weights."""
        return UNet(self)

    def check_size(self, height: int, width: int) -> None:
        """Refuses an image size that the levels cannot hold.

        Raises:
            UserError: naming the next valid sizes.
        """
        check_multiple(height, width, self.multiple)

    def macs(self, height: int, width: int, kept: int | None = None, tokens: int = 0) -> int:
        """Multiply-accumulates of one forward pass on one image: convolutions, linear maps and attention products."""
        body, pixels = self.body, height * width
        total = body.macs(pixels, self.text_inner, tokens)
        total += self.text.macs(body.time, tokens) if self.text else 0
        if self.middle:
            w, p = body.levels[-1].width, pixels // 4 ** (len(body.levels) - 1)
            total += 2 * body.block_macs(w, w, p) + body.attention_macs(w, p, 1, self.text_inner, tokens)
        return total


class UNet(Body):
    """(x (B, C, H, W), c_noise (B,), cond) to (B, C, H, W), or the same with a list of one x for x.

    Takes `label` if it has classes, `text` and `text_mask` (absent: all are tokens) if it reads text, and its
    micro-conditions (B,) by name (absent: their defaults); other keys are ignored.
    """

    def __init__(self, config: UNetConfig):
        super().__init__(config.body, config.text_inner)
        t, body, last = config.body.time, config.body, config.body.levels[-1]
        self.config = config
        self.needs = frozenset([*["text"] * bool(config.text), *["label"] * (config.num_classes > 0)])
        micros = (micro.name for micro in body.micro)
        self.takes = self.needs | {*micros, *["text_mask"] * bool(config.text)}
        self.lm_proj = self.cond_emb = self.class_emb = None
        self.lm_head = nn.ModuleList()
        if config.text:
            text = config.text
            self.lm_proj = nn.Linear(text.width, text.proj) if text.proj else None
            self.lm_head.extend(RowLayer(text.inner, text.heads) for _ in range(text.depth))
            self.cond_emb = nn.Linear(text.inner, t, bias=False) if text.pooled else None
        if config.num_classes:
            self.class_emb = nn.Embedding(config.num_classes + 1, t)
        self.mid_blocks = nn.ModuleList()
        if config.middle:
            for attention in (1, 0):
                level = UNetLevel(last.width, 1, attention)
                self.mid_blocks.append(DownBlock(body, level, [last.width], config.text_inner))

    def units(self) -> list[nn.Module]:
        """The repeated parts, in order of use: the units of checkpointing and sharding."""
        blocks = (self.down_blocks, self.mid_blocks, self.up_blocks)
        return [*self.lm_head, *(unit for some in blocks for unit in self.units_of(some))]

    def param_groups(self) -> list[ParamGroup]:
        """One rate for all; vectors and class embeddings do not decay."""
        return grouped(dict(self.named_parameters()))

    def _pooled(self, text: Tensor, keep: Tensor | None) -> Tensor:
        """(B, D): the mean of the tokens, which upstream takes of the padding, too, where its layers have read it."""
        assert self.config.text is not None
        if keep is None or (len(self.lm_head) and not self.config.text.masked):
            return text.mean(1)
        return (text * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)

    def shared(self, cond: Cond, again: bool) -> Shared:
        """What this network, the innermost, tells all levels of text and class."""
        text = mask = emb = None
        if self.config.text:
            text, keep = cond["text"], cond.get("text_mask")
            keep = None if keep is None else keep.bool()
            if keep is not None and self.config.text.masked:
                mask = additive(keep, torch.float32)
            text = text if self.lm_proj is None else self.lm_proj(text)
            for layer in self.lm_head:
                text = run(layer, again, text, mask)
            emb = None if self.cond_emb is None else self.cond_emb(self._pooled(text, keep))
        if self.class_emb is not None:
            emb = label_rows(self.class_emb.weight, cond["label"]) + (0 if emb is None else emb)
        return Shared(emb, text, mask, again)

    def nested(
        self, xs: Sequence[Tensor], c_noise: Tensor, cond: Cond, shared: Shared, features: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """As a level of a pyramid: its images, the finest first, and the features that the last came of; `features` of
        the finer level enter beside x."""
        (x,) = xs
        given = self.given(c_noise, cond, shared, x.shape[0])
        h = laid_out(self.conv_in(x))
        h, skips = self.downwards(h if features is None else h + features, given)
        for block in self.mid_blocks:
            h, _ = block(h, given)
        h = self.upwards(h, skips, given)
        out, bound = self.head(h), self.config.squash
        return [bound * torch.tanh(out / bound) if bound else out], h

    def forward(self, x: Tensor | Sequence[Tensor], c_noise: Tensor, cond: Cond) -> Tensor | list[Tensor]:
        xs = [x] if isinstance(x, Tensor) else x
        if not torch.compiler.is_compiling():
            check_inputs(self.config, self.takes, self.needs, xs, c_noise, cond)
        outs, _ = self.nested(xs, c_noise, cond, self.shared(cond, self.again), None)
        return outs[0] if isinstance(x, Tensor) else outs
