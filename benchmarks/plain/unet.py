"""The UNet and pyramids of them as one would first write them, after the original's way of computing, to measure ours
against: images as they come (channels first), attention by explicit scores, every operation by itself, no table kept.

Parameters have the names of ours. Text and clips are left out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig
from pixelspace.backbones.unet_body import UNetBody, UNetLevel


class ResBlock(nn.Module):
    def __init__(self, width_in: int, width: int, body: UNetBody):
        super().__init__()
        self.norm1 = nn.GroupNorm(body.groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_layer = nn.Linear(body.time, 2 * width)
        self.norm2 = nn.GroupNorm(body.groups, width)
        self.dropout = nn.Dropout(body.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time_layer(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(self.dropout(F.silu(h)))
        skip = x if self.conv3 is None else self.conv3(x)
        return h + skip


class Attention(nn.Module):
    def __init__(self, width: int, body: UNetBody):
        super().__init__()
        self.heads = body.heads
        self.norm = nn.GroupNorm(body.attention_groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)
        self.ffn = None
        if body.ffn:
            norm = nn.GroupNorm(body.attention_groups, width)
            self.ffn = nn.Sequential(norm, nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        scale = (c // self.heads) ** -0.25  # on both sides, as the original has it
        scores = torch.einsum("bnel,bnek->bnlk", q * scale, k * scale)
        weights = scores.softmax(-1)
        out = torch.einsum("bnlk,bnek->bnel", weights, v).reshape(b, c, h, w)
        x = x + self.proj_out(out)
        return x if self.ffn is None else x + self.ffn(x)


class Block(nn.Module):
    def __init__(self, body: UNetBody, level: UNetLevel, widths_in: list[int], resample: nn.Conv2d | None):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width_in, level.width, body) for width_in in widths_in)
        self.attn = nn.ModuleList(Attention(level.width, body) for _ in range(level.attention * len(widths_in)))
        self.resample = resample

    def layer(self, r: int, x: Tensor, emb: Tensor) -> Tensor:
        count = len(self.attn) // len(self.resnets)
        x = self.resnets[r](x, emb)
        for attention in self.attn[r * count : (r + 1) * count]:
            x = attention(x)
        return x

    def down(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        found = []
        for r in range(len(self.resnets)):
            x = self.layer(r, x, emb)
            found.append(x)
        if self.resample is not None:
            found.append(self.resample(x))
        return found

    def up(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        for r in range(len(self.resnets)):
            x = self.layer(r, torch.cat([x, skips.pop()], dim=1), emb)
        return x if self.resample is None else self.resample(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Body(nn.Module):
    def __init__(self, body: UNetBody):
        super().__init__()
        t, widths, last = body.time, [level.width for level in body.levels], len(body.levels) - 1
        self.body = body
        self.temb_layer1, self.temb_layer2 = nn.Linear(t // 4, t), nn.Linear(t, t)
        self.cond_layers = nn.ModuleDict(
            {micro.name: nn.ModuleList([nn.Linear(t // 4, t), nn.Linear(t, t)]) for micro in body.micro}
        )
        self.conv_in = nn.Conv2d(body.channels, widths[0], 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, (level, widths_in) in enumerate(zip(body.levels, body.down, strict=True)):
            below = nn.Conv2d(level.width, level.width, 3, stride=2, padding=1) if i < last else None
            self.down_blocks.append(Block(body, level, widths_in, below))
        for i, (level, widths_in) in enumerate(zip(reversed(body.levels), body.up, strict=True)):
            above = nn.Conv2d(level.width, level.width, 3, padding=1) if i < last else None
            self.up_blocks.append(Block(body, level, widths_in, above))
        self.norm_out = nn.GroupNorm(body.groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], body.channels, 3, padding=1)

    def waves(self, number: Tensor) -> Tensor:
        half = self.body.time // 8
        rates = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=number.device))
        phase = number[:, None] * rates
        return torch.cat([phase.sin(), phase.cos()], dim=1).to(self.conv_in.weight.dtype)

    def embedding(self, c_noise: Tensor, cond: dict[str, Tensor], shared: Tensor | None) -> Tensor:
        emb = self.temb_layer2(F.silu(self.temb_layer1(self.waves(self.body.noise_unit * c_noise))))
        emb = emb if shared is None else emb + shared
        for micro in self.body.micro:
            inwards, outwards = self.cond_layers[micro.name].children()
            number = cond.get(micro.name, torch.full_like(c_noise, micro.default))
            emb = emb + outwards(F.silu(inwards(self.waves(micro(number)))))
        return emb

    def downwards(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        found = [x]
        for block in self.down_blocks:
            found += block.down(found[-1], emb)
        return found

    def upwards(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        for block in self.up_blocks:
            x = block.up(x, skips, emb)
        return x

    def head(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(x)))


class UNet(Body):
    def __init__(self, config: UNetConfig):
        assert not config.text, "text is left out"
        super().__init__(config.body)
        self.config, body, last = config, config.body, config.body.levels[-1]
        self.class_emb = nn.Embedding(config.num_classes + 1, body.time) if config.num_classes else None
        middle = (UNetLevel(last.width, 1, attention) for attention in (1, 0)) if config.middle else ()
        self.mid_blocks = nn.ModuleList(Block(body, level, [last.width], None) for level in middle)

    def shared(self, cond: dict[str, Tensor]) -> Tensor | None:
        if self.class_emb is None:
            return None
        return self.class_emb(torch.where(cond["label"] < 0, self.config.num_classes, cond["label"]))

    def nested(self, xs, c_noise, cond, shared, features):
        emb = self.embedding(c_noise, cond, shared)
        h = self.conv_in(xs[0])
        skips = self.downwards(h if features is None else h + features, emb)
        h = skips[-1]
        for block in self.mid_blocks:
            (h,) = block.down(h, emb)
        h = self.upwards(h, skips, emb)
        out, bound = self.head(h), self.config.squash
        return [bound * torch.tanh(out / bound) if bound else out], h

    def forward(self, x, c_noise, cond):
        (out,), _ = self.nested([x] if isinstance(x, Tensor) else x, c_noise, cond, self.shared(cond), None)
        return out if isinstance(x, Tensor) else [out]


class NestedUNet(Body):
    def __init__(self, config: NestedUNetConfig):
        assert not config.frames and config.inside.patch == 1, "clips and transformers inside are left out"
        super().__init__(config.body)
        outside, inside = config.body.levels[-1].width, config.inner.entry[1]
        self.config = config
        self.in_adapter = nn.Conv2d(outside, inside, 3, padding=1)
        self.out_adapter = nn.Conv2d(inside, outside, 3, padding=1)
        self.inner_unet = built(config.inner)

    def shared(self, cond: dict[str, Tensor]) -> Tensor | None:
        return self.inner_unet.shared(cond)

    def nested(self, xs, c_noise, cond, shared, features):
        emb = self.embedding(c_noise, cond, shared)
        x = xs[0] / xs[0].std((1, 2, 3), keepdim=True) if self.config.normalise else xs[0]
        h = self.conv_in(x)
        skips = self.downwards(h if features is None else h + features, emb)
        h = skips[-1]
        outs, inner = self.inner_unet.nested(xs[1:], c_noise, cond, shared, self.in_adapter(h))
        h = self.upwards(h + self.out_adapter(inner), skips, emb)
        return [self.head(h), *outs], h

    def forward(self, xs, c_noise, cond):
        return self.nested(xs, c_noise, cond, self.shared(cond), None)[0]


def built(config: UNetConfig | NestedUNetConfig) -> UNet | NestedUNet:
    return UNet(config) if isinstance(config, UNetConfig) else NestedUNet(config)


def plain(network: nn.Module) -> nn.Module:
    """The same network in one's first way of writing, with the same weights; all levels run on all samples."""
    parameter = next(network.parameters())
    found = built(network.config).to(parameter.device, parameter.dtype).train(network.training)  # type: ignore[arg-type]
    found.load_state_dict(network.state_dict())
    return found
