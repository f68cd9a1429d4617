"""Whose turn it is: one drawing at a time, in an order that nobody can crowd others out of."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from pixelspace.errors import PixelspaceError

WAITING, EACH = 16, 2


class Busy(PixelspaceError):
    """Too many wait already."""


class Turn:
    """A place in the queue, and which client's it is."""

    def __init__(self, client: str):
        self.client, self.moved = client, asyncio.Event()


def fair(turns: Sequence[Turn]) -> list[Turn]:
    """In the order they came, but every client's first before anybody's second."""
    seen, ranks = Counter[str](), dict[Turn, int]()
    for turn in turns:
        ranks[turn] = seen[turn.client]
        seen[turn.client] += 1
    return sorted(turns, key=ranks.__getitem__)


class Turns:
    """At most `waiting` turns wait behind the one that is on, `each` of one client in all."""

    def __init__(self, waiting: int = WAITING, each: int = EACH):
        self.waiting, self.each = waiting, each
        self.turns: list[Turn] = []  # the first is on

    def enter(self, client: str) -> Turn:
        """A turn at the end of the queue; who takes one must `leave` it.

        Raises:
            Busy: the queue is full, or has enough of this client.
        """
        if sum(turn.client == client for turn in self.turns) >= self.each:
            raise Busy(f"{self.each} drawings of yours are under way already; wait for one or cancel it")
        if len(self.turns) > self.waiting:
            raise Busy(f"{self.waiting} drawings are waiting already; try again in a while")
        turn = Turn(client)
        self.turns.append(turn)
        self._settle()
        return turn

    def leave(self, turn: Turn) -> None:
        """Gives a turn up, whether it was on or not; twice is once."""
        if turn in self.turns:
            self.turns.remove(turn)
            self._settle()

    def _settle(self) -> None:
        self.turns = fair(self.turns)  # the one that is on stays the first
        for turn in self.turns:
            turn.moved.set()

    async def ahead(self, turn: Turn) -> AsyncIterator[int]:
        """How many are before it, whenever that changes; it ends when the turn is on."""
        said = None
        while place := self.turns.index(turn):
            if place != said:
                yield (said := place)
            turn.moved.clear()
            await turn.moved.wait()
