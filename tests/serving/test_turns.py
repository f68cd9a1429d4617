import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelspace.serving.turns import Busy, Turn, Turns, fair


@given(st.lists(st.sampled_from("abcd")))
def test_every_clients_first_is_before_anybodys_second_and_the_order_settled_stays(clients):
    order = fair([Turn(client) for client in clients])
    ranks = [sum(other.client == turn.client for other in order[:i]) for i, turn in enumerate(order)]
    assert ranks == sorted(ranks) and len(order) == len(clients)
    assert fair(order) == order


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5))))
def test_the_turn_that_is_on_stays_on_until_it_is_left(moves):
    turns = Turns(waiting=4, each=3)
    for client, leaves in moves:
        on = turns.turns[:1]
        try:
            turns.enter(client)
        except Busy:
            pass
        assert turns.turns[:1] == on or not on
        if leaves < len(turns.turns) and leaves:
            turns.leave(turns.turns[leaves])
            assert turns.turns[:1] == on or not on


def test_the_queue_is_bounded_as_a_whole_and_for_each_client():
    turns = Turns(waiting=3, each=2)
    first = turns.enter("a")
    turns.enter("a")
    with pytest.raises(Busy, match="2 drawings of yours"):
        turns.enter("a")
    turns.enter("b")
    turns.enter("c")
    with pytest.raises(Busy, match="3 drawings are waiting already"):
        turns.enter("d")
    turns.leave(first), turns.leave(first)
    assert [turn.client for turn in turns.turns] == ["b", "c", "a"]
    turns.enter("d")


def test_those_who_wait_are_told_their_place_whenever_it_changes():
    async def waits() -> list[int]:
        turns = Turns()
        on, crowd, mine = turns.enter("a"), turns.enter("b"), turns.enter("c")
        told = []

        async def listen() -> None:
            async for ahead in turns.ahead(mine):
                told.append(ahead)

        listening = asyncio.create_task(listen())
        for turn in (on, crowd):
            await asyncio.sleep(0)
            turns.leave(turn)
        await asyncio.wait_for(listening, 5)
        return told

    assert asyncio.run(waits()) == [2, 1]
