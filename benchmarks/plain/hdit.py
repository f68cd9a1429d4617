"""HDiT as one would first write it, to measure ours against: every operation by itself, no table kept, every layout a
copy. Only the mask of a neighborhood is made once a grid, as the window masks of k-diffusion are.

Parameters have the names of ours.
"""

import math
from functools import cache
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixelspace.backbones.hdit import HDiTConfig, Level, Neighborhood, ShiftedWindow

Way = Literal["mask", "gather"]


@cache
def neighbors(h: int, w: int, kernel: int) -> Tensor:
    """(h w, kernel^2) the keys of each query."""
    rows = (torch.arange(h) - kernel // 2).clamp(0, h - kernel)[:, None] + torch.arange(kernel)
    columns = (torch.arange(w) - kernel // 2).clamp(0, w - kernel)[:, None] + torch.arange(kernel)
    return (rows[:, None, :, None] * w + columns[None, :, None, :]).reshape(h * w, kernel**2)


@cache
def dense_mask(h: int, w: int, kernel: int) -> Tensor:
    """(h w, h w): 0 where a query sees a key, else minus infinity."""
    return torch.full((h * w, h * w), -torch.inf).scatter_(1, neighbors(h, w, kernel), 0.0)


def by_mask(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    """Neighborhood attention of q, k, v (B, h, w, N, E) as masked attention to all."""
    h, w = q.shape[1:3]
    mask = dense_mask(h, w, kernel).to(q)
    q, k, v = (rearrange(x, "b h w n e -> b n (h w) e").contiguous() for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return rearrange(out, "b n (h w) e -> b h w n e", h=h).contiguous()


def by_gather(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    """The same with each query's own copy of its keys and values."""
    h, w = q.shape[1:3]
    index = neighbors(h, w, kernel).to(q.device)
    q, k, v = (rearrange(x, "b h w n e -> b (h w) n e") for x in (q, k, v))
    weights = torch.einsum("blne,blkne->blnk", q, k[:, index]).softmax(-1)
    return rearrange(torch.einsum("blnk,blkne->blne", weights, v[:, index]), "b (h w) n e -> b h w n e", h=h)


def in_windows(q: Tensor, k: Tensor, v: Tensor, window: int, shift: int) -> Tensor:
    """Attention within windows of a rolled grid; tokens that the roll brought together do not see each other."""
    h, w = q.shape[1:3]

    def side(length: int) -> Tensor:
        return (torch.arange(length) < shift).to(q.device)

    marks = side(h)[:, None] * 2 + side(w)
    q, k, v = (x.roll((shift, shift), (1, 2)) for x in (q, k, v))
    cut = "(i s) (j t) -> (i j) (s t)"
    marks = rearrange(marks, cut, s=window, t=window)
    mask = torch.where(marks[:, :, None] == marks[:, None, :], 0.0, -torch.inf).to(q)
    q, k, v = (rearrange(x, "b (i s) (j t) n e -> b (i j) n (s t) e", s=window, t=window) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q.contiguous(), k.contiguous(), v.contiguous(), attn_mask=mask[None, :, None], scale=1.0
    )
    out = rearrange(out, "b (i j) n (s t) e -> b (i s) (j t) n e", i=h // window, s=window)
    return out.roll((-shift, -shift), (1, 2))


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * self.scale


class AdaRMSNorm(nn.Module):
    def __init__(self, width: int, cond_width: int):
        super().__init__()
        self.linear = nn.Linear(cond_width, width, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * (1 + self.linear(cond)[:, None, None, :])


class Rotary(nn.Module):
    freqs: Tensor

    def __init__(self, num_heads: int, head_dim: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(num_heads, head_dim // 8))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        y = (2 * torch.arange(h, dtype=self.freqs.dtype, device=x.device) + 1 - h) / max(h, w)
        z = (2 * torch.arange(w, dtype=self.freqs.dtype, device=x.device) + 1 - w) / max(h, w)
        y, z = torch.meshgrid(y, z, indexing="ij")
        theta = torch.cat([y[:, :, None, None] * self.freqs, z[:, :, None, None] * self.freqs], -1)
        n = theta.shape[-1]
        first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        turned = [first * theta.cos() - second * theta.sin(), second * theta.cos() + first * theta.sin()]
        return torch.cat([*(part.to(x.dtype) for part in turned), rest], -1)


class SelfAttention(nn.Module):
    def __init__(self, level: Level, cond_width: int, index: int, way: Way):
        super().__init__()
        assert level.attention is not None
        self.kind, self.index, self.way = level.attention, index, way
        self.num_heads = level.width // level.attention.head_dim
        self.norm = AdaRMSNorm(level.width, cond_width)
        self.qkv_proj = nn.Linear(level.width, 3 * level.width, bias=False)
        self.scale = nn.Parameter(torch.empty(self.num_heads))
        self.pos_emb = Rotary(self.num_heads, level.attention.head_dim)
        self.dropout = nn.Dropout(level.dropout)
        self.out_proj = nn.Linear(level.width, level.width, bias=False)

    def scaled(self, x: Tensor) -> Tensor:
        length = torch.sqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)
        return x / length * self.scale.sqrt()[:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if isinstance(self.kind, Neighborhood):
            return (by_mask if self.way == "mask" else by_gather)(q, k, v, self.kind.kernel)
        if isinstance(self.kind, ShiftedWindow):
            return in_windows(q, k, v, self.kind.window, self.kind.window // 2 if self.index % 2 else 0)
        h = q.shape[1]
        q, k, v = (rearrange(x, "b h w n e -> b n (h w) e").contiguous() for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return rearrange(out, "b n (h w) e -> b h w n e", h=h).contiguous()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(self.norm(x, cond)).chunk(3, -1)
        q, k, v = (rearrange(y, "b h w (n e) -> b h w n e", n=self.num_heads).contiguous() for y in (q, k, v))
        q, k = self.pos_emb(self.scaled(q)), self.pos_emb(self.scaled(k))
        out = rearrange(self.attend(q, k, v), "b h w n e -> b h w (n e)").contiguous()
        return x + self.out_proj(self.dropout(out))


class FeedForward(nn.Module):
    def __init__(self, norm: nn.Module, width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm = norm
        self.up_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, *cond: Tensor) -> Tensor:
        a, gate = self.up_proj(self.norm(x, *cond)).chunk(2, -1)
        return x + self.down_proj(self.dropout(a * F.gelu(gate)))


class Layer(nn.Module):
    def __init__(self, level: Level, cond_width: int, index: int, way: Way):
        super().__init__()
        self.self_attn = SelfAttention(level, cond_width, index, way) if level.attention else None
        self.ff = FeedForward(AdaRMSNorm(level.width, cond_width), level.width, level.feed_forward, level.dropout)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        x = x if self.self_attn is None else self.self_attn(x, cond)
        return self.ff(x, cond)


class Merge(nn.Module):
    def __init__(self, width: int, out: int, patch: tuple[int, int]):
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(width * patch[0] * patch[1], out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(rearrange(x, "n (h a) (w b) d -> n h w (a b d)", a=self.patch[0], b=self.patch[1]))


class Split(nn.Module):
    def __init__(self, width: int, out: int, patch: tuple[int, int], skips: bool):
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(width, out * patch[0] * patch[1], bias=False)
        if skips:
            self.fac = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = rearrange(self.proj(x), "n h w (a b d) -> n (h a) (w b) d", a=self.patch[0], b=self.patch[1])
        return x if skip is None else (1 - self.fac) * skip + self.fac * x


class Fourier(nn.Module):
    weight: Tensor

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.register_buffer("weight", torch.empty(width // 2, inputs))

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * x.to(self.weight.dtype) @ self.weight.T
        return torch.cat([phase.cos(), phase.sin()], -1)


class Mapping(nn.Module):
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
    def __init__(self, config: HDiTConfig, way: Way):
        super().__init__()
        m, levels = config.mapping_width, config.levels
        self.patch_in = Merge(config.channels, levels[0].width, config.patch)
        self.time_emb = Fourier(1, m)
        self.time_in_proj = nn.Linear(m, m, bias=False)
        self.aug_emb = Fourier(9, m)
        self.aug_in_proj = nn.Linear(m, m, bias=False)
        self.class_emb = nn.Embedding(config.num_classes + 1, m) if config.num_classes else None
        self.mapping_cond_in_proj = nn.Linear(config.mapping_cond, m, bias=False) if config.mapping_cond else None
        self.mapping = Mapping(m, config.mapping_depth, config.mapping_hidden or 3 * m, config.mapping_dropout)

        def layers(level: Level, start: int = 0) -> nn.ModuleList:
            return nn.ModuleList(Layer(level, m, start + i, way) for i in range(level.depth))

        self.down_levels = nn.ModuleList(layers(level) for level in levels[:-1])
        self.up_levels = nn.ModuleList(layers(level, level.depth) for level in levels[:-1])
        self.mid_level = layers(levels[-1])
        pairs = list(pairwise(levels))
        self.merges = nn.ModuleList(Merge(fine.width, coarse.width, (2, 2)) for fine, coarse in pairs)
        self.splits = nn.ModuleList(Split(coarse.width, fine.width, (2, 2), True) for fine, coarse in pairs)
        self.out_norm = RMSNorm(levels[0].width)
        self.patch_out = Split(levels[0].width, config.channels, config.patch, False)

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        aug = cond["aug"] if "aug" in cond else c_noise.new_zeros(len(c_noise), 9)
        given = self.time_in_proj(self.time_emb(c_noise[:, None])) + self.aug_in_proj(self.aug_emb(aug))
        if self.class_emb is not None:
            label = torch.where(cond["label"] < 0, self.class_emb.num_embeddings - 1, cond["label"])
            given = given + self.class_emb(label)
        if self.mapping_cond_in_proj is not None:
            given = given + self.mapping_cond_in_proj(cond["mapping"])
        given = self.mapping(given)

        x = self.patch_in(rearrange(x, "b c h w -> b h w c"))
        skips = []
        for layers, merge in zip(self.down_levels, self.merges, strict=True):
            for layer in layers.children():
                x = layer(x, given)
            skips.append(x)
            x = merge(x)
        for layer in self.mid_level:
            x = layer(x, given)
        for layers, split in zip(reversed(self.up_levels), reversed(self.splits), strict=True):
            x = split(x, skips.pop())
            for layer in layers.children():
                x = layer(x, given)
        return rearrange(self.patch_out(self.out_norm(x)), "b h w c -> b c h w").contiguous()


def plain(network: nn.Module, way: Way = "mask") -> nn.Module:
    """The same network in one's first way of writing, with the same weights; neighborhoods by a dense mask or by
    gathered keys."""
    config = network.config
    assert isinstance(config, HDiTConfig) and not config.text and not config.micro
    parameter = next(network.parameters())
    found = HDiT(config, way).to(parameter.device, parameter.dtype).train(network.training)
    found.load_state_dict(network.state_dict())
    return found
