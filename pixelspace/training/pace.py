"""How fast a training is, and how much of its time it waits for data."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pixelspace.data.loader import Raw

_STARVES, _SURE = 0.1, 30.0


class Pace:
    """Counts seconds, but for those `paused`, and those of them that `next` waited; `workers` processes read data."""

    def __init__(self, workers: int):
        self.workers = workers
        self._since, self._wait = time.monotonic(), 0.0
        self._seconds = self._waited = 0.0  # of all that was taken but for the first time, when workers are starting
        self._begun, self._told = False, False

    def next(self, stream: Iterator[Raw]) -> Raw:
        """What the stream has next."""
        asked_at = time.monotonic()
        found = next(stream)
        self._wait += time.monotonic() - asked_at
        return found

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is done meanwhile."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - began

    def take(self) -> tuple[float, float]:
        """The seconds since the last time, and the share of them that was waited."""
        now = time.monotonic()
        seconds, wait = now - self._since, self._wait
        self._since, self._wait = now, 0.0
        if self._begun:
            self._seconds, self._waited = self._seconds + seconds, self._waited + wait
        self._begun = True
        return seconds, wait / seconds

    def advice(self) -> str:
        """Once, when it is sure that data keep the training waiting, what to do about it; else ""."""
        if self._told or self._seconds < _SURE or self._waited < _STARVES * self._seconds:
            return ""
        self._told = True
        said, more = f"it waits for data {self._waited / self._seconds:.0%} of the time", max(1, 2 * self.workers)
        if more > (os.cpu_count() or 1):
            return f"{said}: files of about twice the size that is trained at are read faster"
        return f"{said}; --set stages.*.data.workers={more} reads ahead in processes of their own"
