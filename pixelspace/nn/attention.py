"""Attention over a token grid: everywhere, in a neighborhood, in shifted windows.

Every function takes q, k, v of shape (B, h, w, N, E), already scaled (the softmax scale is 1), and returns the same
shape. Neighborhoods follow NATTEN (Hassani et al. 2023): each query sees exactly kernel^2 keys, and the window moves
inward at the borders instead of being padded. One plain reference defines them; the other ways agree with it.
"""

from collections.abc import Callable, Iterator
from functools import cache, wraps
from itertools import product
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pixelspace.errors import ResourceError, UserError

Table = TypeVar("Table", bound=Callable[..., Any])


def tables_are_fake() -> bool:
    """Whether what is computed now may be no numbers but a sketch of them, and must not be kept."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def tabulated(function: Table) -> Table:
    """Computes a table once for the same arguments; a compiled graph has the computation in itself."""

    @cache
    def cached(*args: Any) -> Any:
        with torch.inference_mode(False):  # what is kept must serve training, too
            return function(*args)

    @wraps(function)
    def table(*args: Any) -> Any:
        return function(*args) if tables_are_fake() else cached(*args)

    return table  # type: ignore[return-value]


Backend = Literal["auto", "reference", "halo", "flex", "natten"]

TILE = 8  # queries a side of a halo tile; 4 and 16 were slower on CPU


def inverse_length(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """(..., 1) of x (..., E), in float32 or the better of both types."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, scale.dtype), torch.float32)
    square_sum = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()
    return (square_sum + eps).rsqrt()


def cosine_scaled(x: Tensor, scale: Tensor) -> Tensor:
    """Queries or keys x (..., N, E) normalised so that products of two are scale (N,) times a cosine (Henry et al.
    2020)."""
    inverse = inverse_length(x, scale)
    return x * (scale.to(inverse.dtype).sqrt()[:, None] * inverse).to(x.dtype)


# In bfloat16 on a CPU the fused kernel's backward pass takes 3 to 9 times that of plain products up to this many keys.
_PLAIN_KEYS = 256


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """q (B, N, L, E), k and v (B, N, K, E) to (B, N, L, E): softmax(scale q k + mask) v."""
    mask = mask if mask is None else mask.to(q.dtype)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= _PLAIN_KEYS:
        scores = (q if scale == 1 else q * scale) @ k.transpose(-1, -2)
        return (scores if mask is None else scores + mask).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def global_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token attends to all."""
    h, w = q.shape[1:3]
    q, k, v = (rearrange(x, "b h w n e -> b n (h w) e") for x in (q, k, v))
    return rearrange(attend(q, k, v), "b n (h w) e -> b h w n e", h=h, w=w)


def _additive(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def _window_start(index: Tensor, length: int, kernel: int) -> Tensor:
    return (index - kernel // 2).clamp(0, length - kernel)


def neighborhood_mask(h: int, w: int, kernel: int) -> Tensor:
    """(h w, h w) bool, row = query: the definition of a neighborhood."""

    def axis(length: int) -> Tensor:
        keys = torch.arange(length)
        start = _window_start(keys, length, kernel)[:, None]
        return (keys >= start) & (keys < start + kernel)

    return torch.kron(axis(h).int(), axis(w).int()).bool()


_DENSE_TOKENS = 256


@tabulated
def _dense_mask(h: int, w: int, kernel: int, device: torch.device) -> Tensor:
    return _additive(neighborhood_mask(h, w, kernel).to(device))


def _neighborhood_reference(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    h, w = q.shape[1:3]
    mask = _dense_mask(h, w, kernel, q.device)
    q, k, v = (rearrange(x, "b h w n e -> b n (h w) e") for x in (q, k, v))
    return rearrange(attend(q, k, v, mask), "b n (h w) e -> b h w n e", h=h, w=w)


@tabulated
def _halo_axis(length: int, kernel: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For tiles of queries along one axis: which keys (tiles, halo) each gathers, and which of them each query
    (tiles, TILE) may see (tiles, TILE, halo)."""
    tiles = -(-length // TILE)
    halo = min(TILE + kernel - 1, length)
    first = torch.arange(tiles, device=device) * TILE
    keys = (first - kernel // 2).clamp(0, length - halo)[:, None] + torch.arange(halo, device=device)
    queries = (first[:, None] + torch.arange(TILE, device=device)).clamp(max=length - 1)  # padding repeats the last one
    start = _window_start(queries, length, kernel)[:, :, None]
    return keys, (keys[:, None] >= start) & (keys[:, None] < start + kernel)


@tabulated
def _halo_mask(h: int, w: int, kernel: int, device: torch.device) -> Tensor:
    rows, columns = _halo_axis(h, kernel, device)[1], _halo_axis(w, kernel, device)[1]
    both = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]
    return _additive(rearrange(both, "i j t u s r -> (i j) 1 (t u) (s r)"))


def _runs(length: int, kernel: int) -> list[tuple[slice, int, int]]:
    """Of the tiles along an axis those whose halos neither overlap nor leave their stride: (which, the first's first
    key, the stride)."""
    tiles, halo = -(-length // TILE), min(TILE + kernel - 1, length)
    first = [min(max(i * TILE - kernel // 2, 0), length - halo) for i in range(tiles)]
    apart = -(-halo // TILE)  # tiles
    regular = [i for i in range(tiles) if first[i] == i * TILE - kernel // 2]
    classes = [regular[i::apart] for i in range(min(apart, len(regular)))]
    runs = [(slice(some[0], some[-1] + 1, apart), first[some[0]], apart * TILE) for some in classes]
    return runs + [(slice(i, i + 1), first[i], TILE) for i in range(tiles) if i not in regular]


class _Halos(torch.autograd.Function):
    """Copies the halos of many tiles at once, and adds their gradients up as they overlap: by strides, not by index."""

    @staticmethod
    def pairs(x: Tensor, tiled: Tensor, h: int, w: int, kernel: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of the same tokens in x (B, h, w, N, E) and in tiled (i, j, B, N, s, r, E)."""
        b, down, across, n, e = x.stride()
        for (i, top, dy), (j, left, dx) in product(_runs(h, kernel), _runs(w, kernel)):
            there = tiled[i, j]
            strides = dy * down, dx * across, b, n, down, across, e
            yield x.as_strided(there.shape, strides, x.storage_offset() + top * down + left * across), there

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int) -> Tensor:
        b, h, w, n, e = ctx.shape = x.shape
        ctx.kernel, tiles = kernel, (-(-h // TILE), -(-w // TILE))
        out = x.new_empty(*tiles, b, n, *(min(TILE + kernel - 1, side) for side in (h, w)), e)
        for here, there in _Halos.pairs(x, out, h, w, kernel):
            there.copy_(here)
        return out.reshape(tiles[0] * tiles[1], b * n, -1, e)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        b, h, w, n, e = ctx.shape
        sides = [min(TILE + ctx.kernel - 1, side) for side in (h, w)]
        grad = grad.reshape(-(-h // TILE), -(-w // TILE), b, n, *sides, e)
        out = grad.new_zeros(b, n, h, w, e).permute(0, 2, 3, 1, 4)
        for here, there in _Halos.pairs(out, grad, h, w, ctx.kernel):
            here.add_(there)
        return out, None


def _halos(x: Tensor, kernel: int) -> Tensor:
    """x (B, h, w, N, E) to the halos of its tiles (i j, B N, s r, E)."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere the passes are joined by compiling
        return _Halos.apply(x, kernel)
    h, w = x.shape[1:3]
    rows, columns = _halo_axis(h, kernel, x.device)[0], _halo_axis(w, kernel, x.device)[0]
    x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
    return rearrange(x, "b (i s) (j r) n e -> (i j) (b n) (s r) e", i=len(rows), j=len(columns))


def _neighborhood_halo(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    """Tiles of 8 x 8 queries, each with the keys of its halo: memory linear in tokens, and no package needed."""
    b, h, w = q.shape[:3]
    if h % TILE or w % TILE:
        q = F.pad(q, (0, 0, 0, 0, 0, -w % TILE, 0, -h % TILE))
    tiles = rearrange(q, "b (i t) (j u) n e -> (i j) (b n) (t u) e", t=TILE, u=TILE)
    out = attend(tiles, _halos(k, kernel), _halos(v, kernel), _halo_mask(h, w, kernel, q.device))
    out = rearrange(out, "(i j) (b n) (t u) e -> b (i t) (j u) n e", i=-(-h // TILE), b=b, t=TILE)
    return out[:, :h, :w]


@tabulated
def _flex_mask(h: int, w: int, kernel: int, device: torch.device):
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: Tensor, n: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row, column = _window_start(query // w, h, kernel), _window_start(query % w, w, kernel)
        dy, dx = key // w - row, key % w - column
        return (dy >= 0) & (dy < kernel) & (dx >= 0) & (dx < kernel)

    return create_block_mask(allowed, None, None, h * w, h * w, device=str(device))


@cache
def _flex(compiled: bool):
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def _neighborhood_flex(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    h, w = q.shape[1:3]
    mask = _flex_mask(h, w, kernel, q.device)
    q, k, v = (rearrange(x, "b h w n e -> b n (h w) e") for x in (q, k, v))
    out = _flex(q.is_cuda)(q, k, v, block_mask=mask, scale=1.0)
    return rearrange(out, "b n (h w) e -> b h w n e", h=h, w=w)


@cache
def _natten():
    try:
        import natten  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ResourceError("attention backend 'natten': not installed; pip install 'pixelspace[natten]'") from error
    return natten


def _neighborhood_natten(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    return _natten().na2d(q, k, v, kernel_size=(kernel, kernel), scale=1.0)


@cache
def _natten_is_fast() -> bool:
    try:
        return bool(_natten().HAS_LIBNATTEN)
    except ResourceError:
        return False


NEIGHBORHOODS = {
    "reference": _neighborhood_reference,
    "halo": _neighborhood_halo,
    "flex": _neighborhood_flex,
    "natten": _neighborhood_natten,
}


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, kernel: int, backend: Backend = "auto") -> Tensor:
    """Each token attends to the kernel x kernel tokens round it.

    `auto` takes natten's kernels or else FlexAttention on CUDA; elsewhere and for float64 halo tiles, or for up to 256
    tokens the dense reference, which is quicker there.

    Raises:
        UserError: a kernel that is even or larger than the grid.
        ResourceError: the backend's package is absent.
    """
    h, w = q.shape[1:3]
    if kernel % 2 == 0 or kernel > min(h, w):
        raise UserError(f"neighborhood kernel {kernel} must be odd and fit the {h}x{w} token grid")
    if backend == "auto":
        if q.is_cuda and q.dtype != torch.float64:
            backend = "natten" if _natten_is_fast() else "flex"
        else:
            backend = "halo" if h * w > _DENSE_TOKENS else "reference"
    return NEIGHBORHOODS[backend](q, k, v, kernel)


def window_mask(tiles_h: int, tiles_w: int, window: int, shift: int) -> Tensor:
    """(tiles_h, tiles_w, window, window, window, window) bool: may the query (fourth and third axis from the front) see
    the key. After a roll by +shift the first row and column of windows hold tokens from the far border, which only see
    each other."""

    def axis(tiles: int) -> Tensor:
        wrapped = (torch.arange(window) < shift) & (torch.arange(tiles) == 0)[:, None]  # (tiles, window)
        return wrapped[:, :, None] == wrapped[:, None, :]

    rows, columns = axis(tiles_h), axis(tiles_w)
    return rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]


@tabulated
def _window_bias(tiles_h: int, tiles_w: int, window: int, shift: int, device: torch.device) -> Tensor:
    mask = window_mask(tiles_h, tiles_w, window, shift)
    return _additive(rearrange(mask, "i j t u s r -> (i j) 1 (t u) (s r)").to(device))


def shifted_window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, shift: int) -> Tensor:
    """Each token attends within its window after a roll by `shift` (Liu et al. 2021; k-diffusion rolls forward).

    Raises:
        UserError: the window does not divide the grid.
    """
    b, h, w = q.shape[:3]
    if h % window or w % window:
        raise UserError(f"attention window {window} must divide the {h}x{w} token grid")
    i, j = h // window, w // window

    def tiles(x: Tensor) -> Tensor:
        x = x.roll((shift, shift), (1, 2)) if shift else x
        return rearrange(x, "b (i t) (j u) n e -> (i j) (b n) (t u) e", t=window, u=window)

    bias = _window_bias(i, j, window, shift, q.device) if shift else None
    out = attend(tiles(q), tiles(k), tiles(v), bias)
    out = rearrange(out, "(i j) (b n) (t u) e -> b (i t) (j u) n e", i=i, b=b, t=window)
    return out.roll((-shift, -shift), (1, 2)) if shift else out
