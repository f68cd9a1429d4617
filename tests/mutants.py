"""Damaged bytes, as disks and cut-off downloads leave them."""

import random
from collections.abc import Iterator


def mutants(whole: bytes, count: int, seed: str) -> Iterator[bytes]:
    """`count` copies with one to four bytes changed; of every five the first is cut short too."""
    draw = random.Random(seed)
    for i in range(count):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        yield bytes(data[: draw.randrange(len(data))] if i % 5 == 0 else data)
