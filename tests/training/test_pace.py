import pytest

from pixelspace.training import pace
from pixelspace.training.pace import Pace


class Clock:
    """Time that goes on only where it is told to."""

    now = 100.0

    def monotonic(self):
        return self.now

    def stream(self, seconds):
        while True:
            self.now += seconds
            yield "batch"


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(pace.os, "cpu_count", lambda: 4)
    return clock


def trained(of, clock, steps, wait, work):
    stream = clock.stream(wait)
    for _ in range(steps):
        assert of.next(stream) == "batch"
        clock.now += work
    return of.take()


def test_waits_are_counted_and_what_is_done_in_between_is_not(clock):
    of = Pace(0)
    assert trained(of, clock, 10, 0.25, 0.75) == (10, 0.25)
    with of.paused():
        clock.now += 1000
    assert trained(of, clock, 4, 0.5, 0.5) == (4, 0.5)
    with pytest.raises(OSError, match="full"), of.paused():
        clock.now += 1000
        raise OSError("full")
    assert trained(of, clock, 1, 0, 2) == (2, 0)


@pytest.mark.parametrize(
    ("workers", "said"),
    [(0, "data.workers=1 reads"), (2, "data.workers=4 reads"), (3, "are read faster")],
)
def test_a_training_that_waits_is_told_once_what_helps(clock, workers, said):
    of = Pace(workers)
    trained(of, clock, 1, 500, 1)  # while workers start
    assert of.advice() == ""
    trained(of, clock, 29, 0.25, 0.75)
    assert of.advice() == ""  # too early to be sure
    trained(of, clock, 29, 0.25, 0.75)
    advice = of.advice()
    assert advice.startswith("it waits for data 25% of the time") and said in advice
    trained(of, clock, 29, 0.25, 0.75)
    assert of.advice() == ""


def test_a_training_that_hardly_waits_is_told_nothing(clock):
    of = Pace(0)
    for _ in range(5):
        trained(of, clock, 20, 0.09, 0.91)
        assert of.advice() == ""
