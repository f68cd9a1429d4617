"""In what float32 is computed: the one place that sets it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 as they are, or, with `tf32`, of factors rounded to 10 bits where the
    hardware is made for it; afterwards as before.

    By these two switches, since the newer ones of each backend cannot be read together with what `torch.compile` reads;
    torch itself rounds in convolutions of CUDA unless it is told not to.
    """
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv
