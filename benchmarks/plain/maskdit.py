"""MaskDiT as one would first write it, after the original's way of computing, to measure ours against: all patches
embedded and then those kept gathered, attention by explicit scores, tables of positions made at every call, every
operation by itself.

Parameters have the names of ours. Text, features and class tokens are left out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelspace.backbones.maskdit import MaskDiTConfig


def timestep_waves(t: Tensor) -> Tensor:
    rates = torch.exp(-math.log(10000.0) / 128 * torch.arange(128, dtype=torch.float32, device=t.device))
    phase = t[:, None] * rates
    return torch.cat([phase.cos(), phase.sin()], dim=1).to(t.dtype)


def position_table(h: int, w: int, width: int, like: Tensor) -> Tensor:
    """(1, h w, width), the column's code before the row's."""
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    codes = []
    for places in (columns, rows):
        phase = places.reshape(-1)[:, None].double() * rates
        codes += [phase.sin(), phase.cos()]
    return torch.cat(codes, dim=1).float().to(like)[None]


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, length, width = x.shape
        qkv = self.qkv(x).reshape(b, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.contiguous().unbind(0)
        scores = torch.einsum("bnle,bnke->bnlk", q * (width // self.num_heads) ** -0.5, k)
        out = torch.einsum("bnlk,bnke->bnle", scores.softmax(-1), v)
        return self.proj(out.transpose(1, 2).reshape(b, length, width).contiguous())


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, mlp_ratio: float, cond_width: int):
        super().__init__()
        self.attn = Attention(width, num_heads)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond_width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulated(x, shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulated(x, shift_m, scale_m))


class Head(nn.Module):
    def __init__(self, width: int, width_out: int, cond_width: int):
        super().__init__()
        self.linear = nn.Linear(width, width_out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond_width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulated(x, shift, scale))


class MaskDiT(nn.Module):
    def __init__(self, config: MaskDiTConfig):
        super().__init__()
        d, decoder = config.width, config.decoder
        self.config = config
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(config.channels, d, config.patch, stride=config.patch)})
        time = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))
        self.t_embedder = nn.ModuleDict({"mlp": time})
        self.y_embedder = None
        if config.num_classes:
            self.y_embedder = nn.ModuleDict({"embedding_table": nn.Linear(config.num_classes, d, bias=False)})

        def blocks(width: int, depth: int, num_heads: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, num_heads, config.mlp_ratio, d) for _ in range(depth))

        self.blocks = blocks(d, config.depth, config.num_heads)
        if decoder is not None:
            self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.width)) if decoder.mask_token else None
            self.decoder_layer = Head(d, decoder.width, d)
            self.decoder_blocks = blocks(decoder.width, decoder.depth, decoder.num_heads)
        self.final_layer = Head(decoder.width if decoder else d, config.patch**2 * config.channels, d)

    def restored(self, tokens: Tensor, keep: Tensor | None, fill: Tensor | None) -> Tensor:
        """All tokens in their places, `fill` or zeros where there was none."""
        if keep is None:
            return tokens
        length, width = math.prod(self.config.grid), tokens.shape[2]
        removed = torch.ones(len(tokens), length, device=tokens.device).scatter(1, keep, 0).argsort(1, descending=True)
        order = torch.cat([keep, removed[:, : length - keep.shape[1]]], dim=1)
        fill = tokens.new_zeros(1, 1, width) if fill is None else fill
        whole = torch.cat([tokens, fill.repeat(len(tokens), length - keep.shape[1], 1)], dim=1)
        return whole.gather(1, order.argsort(1).unsqueeze(-1).repeat(1, 1, width))

    def forward(self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor], keep: Tensor | None = None) -> Tensor:
        config, (h, w) = self.config, self.config.grid
        c = self.t_embedder["mlp"](timestep_waves(c_noise))
        if self.y_embedder is not None:
            rows = F.one_hot(cond["label"].clamp(min=0), config.num_classes) * (cond["label"] >= 0)[:, None]
            c = c + self.y_embedder["embedding_table"](rows.to(c.dtype))

        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2).contiguous()
        tokens = tokens + position_table(h, w, config.width, tokens)
        if keep is not None:
            tokens = tokens.gather(1, keep.unsqueeze(-1).repeat(1, 1, config.width))
        for block in self.blocks:
            tokens = block(tokens, c)

        if config.decoder is None:
            tokens = self.restored(self.final_layer(tokens, c), keep, None)
        else:
            tokens = self.restored(self.decoder_layer(tokens, c), keep, self.mask_token)
            tokens = tokens + position_table(h, w, config.decoder.width, tokens)
            for block in self.decoder_blocks:
                tokens = block(tokens, c)
            tokens = self.final_layer(tokens, c)
        p = config.patch
        tokens = tokens.reshape(len(x), h, w, p, p, config.channels)
        return torch.einsum("nhwpqc->nchpwq", tokens).reshape(x.shape)


def plain(network: nn.Module) -> nn.Module:
    """The same network in one's first way of writing, with the same weights."""
    config, parameter = network.config, next(network.parameters())
    assert isinstance(config, MaskDiTConfig) and not (config.text or config.feature or config.cls_token)
    found = MaskDiT(config).to(parameter.device, parameter.dtype).train(network.training)
    tables = set(config.positions)  # made at every call
    found.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if name not in tables})
    return found
