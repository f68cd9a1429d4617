"""What networks do with text: project it, read it by layers of their own, and attend to it."""

import torch
from einops import rearrange
from torch import Tensor, nn

from pixelspace.config import value
from pixelspace.nn.attention import attend, cosine_scaled
from pixelspace.nn.embed import timestep_features
from pixelspace.nn.linear import Linear
from pixelspace.nn.mlp import FeedForward
from pixelspace.nn.norm import RMSNorm
from pixelspace.types import Cond


@value
class Text:
    """How a network reads text whose tokens are `width` wide and whose pooled form is `pooled` wide (0: not read).

    Tokens are brought to `inner` numbers each; `depth` layers of self-attention over them learn with the network, which
    an encoder that knows a language does without and one of bytes needs.
    """

    width: int
    pooled: int
    inner: int = 256
    depth: int = 0
    head_dim: int = 64

    def __post_init__(self) -> None:
        if min(self.width, self.inner, self.head_dim) < 1 or min(self.pooled, self.depth) < 0:
            raise ValueError("Text: width, inner and head_dim must be positive, pooled and depth not negative")
        if self.inner % self.head_dim:
            raise ValueError(f"Text: inner {self.inner} is not a multiple of head_dim {self.head_dim}")

    @property
    def takes(self) -> tuple[str, ...]:
        """The keys of cond that it reads."""
        return ("text", "text_mask", "pooled") if self.pooled else ("text", "text_mask")

    def macs(self, out: int, tokens: int) -> int:
        """Multiply-accumulates of a `TextInput` that gives a summary of `out` numbers."""
        w = self.inner
        layer = tokens * (4 * w**2 + 2 * w * tokens + 9 * w**2)
        return tokens * self.width * w + self.depth * layer + (w + self.pooled) * out


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L) bool to (B, 1, 1, L): 0 where there is a token, else minus infinity."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)[:, None, None]


class _SelfAttention(nn.Module):
    """Pre-norm residual self-attention of tokens with scaled cosine similarity; starts as identity."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.num_heads = width // head_dim
        self.norm = RMSNorm(width)
        self.qkv_proj = Linear(width, 3 * width, bias=False)
        self.scale = nn.Parameter(torch.full((self.num_heads,), 10.0))
        self.out_proj = Linear(width, width, bias=False)
        nn.init.zeros_(self.out_proj.weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv_proj(self.norm(x)), "b l (t n e) -> t b l n e", t=3, n=self.num_heads).unbind()
        q, k, v = (y.transpose(1, 2) for y in (cosine_scaled(q, self.scale), cosine_scaled(k, self.scale), v))
        return x + self.out_proj(rearrange(attend(q, k, v, mask), "b n l e -> b l (n e)"))


class _Layer(nn.Module):
    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.self_attn = _SelfAttention(width, head_dim)
        self.ff = FeedForward(RMSNorm(width), width, 3 * width, 0.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.ff(self.self_attn(x, mask))


class TextInput(nn.Module):
    """cond to tokens (B, L, inner), an additive mask (B, 1, 1, L) and a summary (B, out).

    The summary is of the mean of the tokens and, where it is read, of the encoder's pooled text.
    """

    def __init__(self, text: Text, out: int):
        super().__init__()
        self.in_proj = Linear(text.width, text.inner, bias=False)
        self.layers = nn.ModuleList(_Layer(text.inner, text.head_dim) for _ in range(text.depth))
        self.out_norm = RMSNorm(text.inner)
        self.mean_proj = nn.Linear(text.inner, out, bias=False)
        self.pooled_proj = nn.Linear(text.pooled, out, bias=False) if text.pooled else None

    def forward(self, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        mask, x = cond["text_mask"], self.in_proj(cond["text"])
        if len(self.layers):
            places = torch.arange(x.shape[1], device=x.device)
            x = x + timestep_features(places, x.shape[2]).to(x.dtype)
        thinned = additive(mask, torch.float32)
        for layer in self.layers:
            x = layer(x, thinned)
        x = self.out_norm(x)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        summary = self.mean_proj(mean)
        return x, thinned, summary if self.pooled_proj is None else summary + self.pooled_proj(cond["pooled"])


class CrossAttention(nn.Module):
    """Pre-norm residual attention of x (B, ..., D) to text with scaled cosine similarity; starts as identity.

    `norm` takes x and a condition.
    """

    def __init__(self, norm: nn.Module, width: int, text_width: int, head_dim: int):
        super().__init__()
        self.num_heads = width // head_dim
        self.norm = norm
        self.q_proj = Linear(width, width, bias=False)
        self.kv_proj = Linear(text_width, 2 * width, bias=False)
        self.scale = nn.Parameter(torch.full((self.num_heads,), 10.0))
        self.out_proj = Linear(width, width, bias=False)
        nn.init.zeros_(self.out_proj.weight)

    def forward(self, x: Tensor, cond: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        q = rearrange(self.q_proj(self.norm(x, cond)).flatten(1, -2), "b l (n e) -> b l n e", n=self.num_heads)
        k, v = rearrange(self.kv_proj(tokens), "b l (t n e) -> t b l n e", t=2, n=self.num_heads).unbind()
        q, k, v = (y.transpose(1, 2) for y in (cosine_scaled(q, self.scale), cosine_scaled(k, self.scale), v))
        out = rearrange(attend(q, k, v, mask), "b n l e -> b l (n e)")
        return x + self.out_proj(out).reshape(x.shape)
