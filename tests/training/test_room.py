from dataclasses import replace

import pytest
import torch

from pixelspace.config import from_data, override, to_data
from pixelspace.recipes.values import VALUES
from pixelspace.training.memory import gib, predicted
from pixelspace.training.room import is_out_of_memory, no_room


def ways(said):
    return [way.split(" (") for way in said.partition("ways out: ")[2].partition(", or share")[0].split(", ")]


def test_memory_that_cannot_be_had_is_recognised():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."))


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), ValueError("CUDA out of memory"), OSError()])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("changes", [{}, {"micro": 1, "checkpointing": True}], ids=["plain", "most is done"])
def test_it_says_what_a_step_holds_and_ways_that_hold_less(tiny, changes):
    """Each way is a setting of the command line, and what it says of it is what is predicted."""
    (stage,) = tiny.stages
    tried = replace(tiny, stages=(replace(stage, **changes),))
    (stage,) = tried.stages
    held, said = predicted(stage), no_room(stage, 2**20)
    assert "\n" not in said and said.startswith("stage 'train': out of memory: a step holds ")
    assert f"a step holds {gib(held.total)} (weights {gib(held.weights)}, " in said and "there are 1.0 MiB" in said
    assert "or share it among more devices" in said
    assert len(ways(said)) == (2 if changes else 3)  # what is computed again is not kept at half precision either
    for setting, size in ways(said):
        other = from_data(override(to_data(tried), setting.removeprefix("--set ")), VALUES)
        assert predicted(other.stages[0]).total < held.total
        assert size == f"{gib(predicted(other.stages[0]).total)})"


def test_as_many_images_as_fit_are_proposed(tiny):
    (stage,) = tiny.stages
    held = predicted(stage)
    room = int(held.total - 0.4 * held.activations)  # of 8 images 4 fit
    assert "stages.*.micro=4 " in no_room(stage, room)
    assert "stages.*.micro=1 " in no_room(stage, 1)
    assert "stages.*.micro=4 " in no_room(stage)
