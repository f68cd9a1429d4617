"""What a process asks of its machine before torch starts; whoever sets the variables named here is asked nothing."""

import ctypes
import os
import sys

_TRIM, _PAD, _MAPPED = -1, -2, -3  # of glibc's mallopt


def _keep_freed_memory() -> None:
    """Lets freed memory stay with the process.

    Else each large tensor is given back when it is freed and its pages are taken anew for the next, which takes
    a CPU a tenth to a quarter of a step at 64 px and half of one at 1024 px.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or os.environ.get("GLIBC_TUNABLES"):
        return
    largest = 2**31 - 1
    if mallopt(_MAPPED, largest) or mallopt(_MAPPED, 2**25):  # the limit of older ones
        mallopt(_TRIM, largest)
        mallopt(_PAD, 2**28)


def prepare() -> None:
    """For training and sampling on a CPU; a GPU does not mind."""
    # Threads that spin while they wait make a step 10 times slower as soon as something else runs on the machine; this
    # costs 10 % on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _keep_freed_memory()
