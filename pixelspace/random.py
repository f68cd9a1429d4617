"""Randomness as data: every draw is a function of (seed, purpose, global sample position).

Nothing here depends on workers, ranks, how a batch is split, or on what was drawn before. Small draws come from a
keyed hash and so are the same on every platform; image-sized noise comes from a generator seeded per sample on the
device that needs it, and its bits may differ between kinds of devices.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _digest(parts: tuple[int | str, ...], size: int) -> bytes:
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=size).digest()


def _round(half: Any, key: int, i: int, mask: int) -> Any:  # of an int, or of all in a uint64 array
    offset = (key + (i + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = (half + offset) & 0xFFFFFFFFFFFFFFFF  # splitmix64 (Steele et al. 2014)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & mask


def _bits(n: int) -> int:
    """Of each half of a number in the least domain of a Feistel network that holds [0, n)."""
    return max(1, ((n - 1).bit_length() + 1) // 2)


def permuted(k: int, n: int, key: int) -> int:
    """Where a keyed bijection of [0, n) sends k: a Feistel network walked along its cycle until it lands in range.

    Takes O(1) memory for any n, so that an epoch's order is random access.
    """
    assert 0 <= k < n
    bits = _bits(n)
    mask = (1 << bits) - 1
    while True:
        left, right = k >> bits, k & mask
        for i in range(6):
            left, right = right, left ^ _round(right, key, i, mask)
        k = (left << bits) | right
        if k < n:
            return k


def permutation(n: int, key: int) -> np.ndarray:
    """int64 (n,): `permuted(k, n, key)` of every k."""
    bits = _bits(n)
    mask = (1 << bits) - 1
    out = np.arange(n, dtype=np.uint64)
    beyond = np.arange(n)
    while len(beyond):
        left, right = out[beyond] >> bits, out[beyond] & mask
        for i in range(6):
            left, right = right, left ^ _round(right, key, i, mask)
        out[beyond] = (left << bits) | right
        beyond = beyond[out[beyond] >= n]
    return out.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Rng:
    """The source of all draws of a run."""

    seed: int

    def key(self, *parts: int | str) -> int:
        """A 63-bit integer for (seed, *parts); equal parts give equal keys on every platform."""
        return int.from_bytes(_digest((self.seed, *parts), 8), "little") >> 1

    def keys(self, numbers: np.ndarray) -> np.ndarray:
        """int64 (n,): `key(number)` of each."""
        known, out = f"{self.seed}/".encode(), np.empty(len(numbers), dtype=np.int64)
        for start in range(0, len(out), 1 << 16):  # by parts: as Python's integers they take five times the memory
            part = numbers[start : start + (1 << 16)].tolist()
            digests = b"".join(hashlib.blake2b(known + b"%d" % i, digest_size=8).digest() for i in part)
            out[start : start + len(part)] = np.frombuffer(digests, dtype="<u8") >> 1
        return out

    def generator(self, *parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator seeded with `key(*parts)`."""
        return torch.Generator(device).manual_seed(self.key(*parts))

    def uniforms(self, purpose: str, p: int, n: int = 1) -> list[float]:
        """n uniforms in the open interval (0, 1), a function of (seed, purpose, p)."""
        assert 1 <= n <= 8
        row = _digest((self.seed, purpose, p), 8 * n)
        return [((int.from_bytes(row[8 * i : 8 * i + 8], "little") >> 12) + 0.5) * 2.0**-52 for i in range(n)]

    def uniform(self, purpose: str, pos: Tensor, n: int = 1) -> Tensor:
        """(B, n) float64, row b `uniforms` at position pos[b]."""
        rows = [self.uniforms(purpose, p, n) for p in pos.tolist()]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), n)

    def normal(self, purpose: str, pos: Tensor, n: int = 1) -> Tensor:
        """(B, n) float64 standard normals, by inversion of `uniform`."""
        return torch.special.ndtri(self.uniform(purpose, pos, n))

    def stratified(self, purpose: str, pos: Tensor, batch: int) -> Tensor:
        """(B,) float64 uniforms; a global batch (positions step·batch …) has one in each of `batch` equal bins."""
        bins = [permuted(p % batch, batch, self.key(purpose, "strata", p // batch)) for p in pos.tolist()]
        return (torch.tensor(bins, dtype=torch.float64) + self.uniform(purpose, pos)[:, 0]) / batch

    def noise(self, purpose: str, pos: Tensor, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """(B, *shape) float32 standard normals made on `device`, one re-seeded stream a sample."""
        out = torch.empty(len(pos), *shape, device=device)
        generator = torch.Generator(device)
        for row, p in zip(out, pos.tolist(), strict=True):
            row.normal_(generator=generator.manual_seed(self.key(purpose, p)))
        return out

    def subset(self, purpose: str, pos: Tensor, n: int, k: int) -> Tensor:
        """(B, k) int64 ascending: k of the numbers 0 to n - 1, every choice as likely, one stream a sample."""
        generator = torch.Generator()
        rows = [torch.randperm(n, generator=generator.manual_seed(self.key(purpose, p)))[:k] for p in pos.tolist()]
        return torch.stack(rows).sort(1).values

    def sample_id(self, p: int, n: int) -> int:
        """Which of n samples stands at global position p: each exactly once an epoch, in a new order each epoch."""
        epoch, k = divmod(p, n)
        return permuted(k, n, self.key("order", epoch))
