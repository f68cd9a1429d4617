"""How a batch is shared out among ranks, and what is refused before anything is trained."""

from dataclasses import replace

import pytest
import torch

from pixelspace.dist import Ranks
from pixelspace.errors import UserError
from pixelspace.recipes.hdit import imagenet128_debug
from pixelspace.training.low_memory import AdamW8bit
from pixelspace.training.parallel import Engine, _Tree, check_alike, check_ranks
from tests.test_dist import at_once


@pytest.fixture
def stage():
    (stage,) = imagenet128_debug().stages
    return replace(stage, batch=48, images=96)


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16])
def test_ranks_take_every_position_once_and_in_order(stage, world):
    engines = [Engine(stage, Ranks(rank, world)) for rank in range(world)]
    assert [place for engine in engines for place in engine.rows] == list(range(48))
    assert [place for engine in engines for part in engine.parts for place in part] == list(range(48))


def test_micro_batches_and_lanes_part_a_ranks_share(stage):
    assert [len(part) for part in Engine(replace(stage, micro=8), Ranks(1, 2)).parts] == [8, 8, 8]
    exact = replace(stage, reduction="exact", lanes=4)
    assert [len(part) for part in Engine(exact, Ranks(1, 2)).parts] == [12, 12]
    assert [len(part) for part in Engine(replace(exact, micro=6), Ranks(0, 4)).parts] == [6, 6]


@pytest.mark.parametrize(
    ("changes", "world", "sharding", "line"),
    [
        ({}, 3, "none", r"3 ranks cannot share the 16 lanes of its batch of 48; take one of \[1, 2, 4, 8, 16\] ranks"),
        ({}, 32, "none", "32 ranks cannot share the 16 lanes"),
        ({"lanes": 48}, 5, "none", "5 ranks cannot share the 48 lanes"),
        (
            {"micro": 16},
            2,
            "none",
            "micro 16 must divide the 24 images of each of 2 ranks: ",
        ),
        ({"reduction": "exact", "micro": 2}, 1, "none", r"micro 2 must divide the 3 images of a lane: \[1, 3\]"),
        ({"reduction": "exact"}, 2, "full", "reduction 'exact' needs whole gradients on each rank, and --shard full"),
        ({"ema_device": "cpu"}, 2, "node", "ema_device to 'same'"),
        ({"optimizer": AdamW8bit()}, 2, "full", "moments of 8 bits"),
    ],
)
def test_what_ranks_cannot_share_is_refused_with_what_they_can(stage, changes, world, sharding, line):
    with pytest.raises(UserError, match=line):
        check_ranks(replace(stage, **changes), world, sharding)


def test_exact_sums_need_powers_of_two(stage):
    with pytest.raises(ValueError, match="needs a power of two as lanes, found 48"):
        replace(stage, lanes=48, reduction="exact")
    with pytest.raises(ValueError, match="lanes 5 must be 0 or divide batch 48"):
        replace(stage, lanes=5)


def test_a_tree_of_sums_has_the_bits_of_its_halves():
    lanes = [{"w": torch.randn(100), **({"idle": torch.randn(3)} if i == 2 else {})} for i in range(8)]
    whole, halves = _Tree(), [_Tree(), _Tree()]
    for i, gradients in enumerate(lanes):
        whole.add(gradients)
        halves[i // 4].add(gradients)
    (a, b), found = (half.take() for half in halves), whole.take()
    assert torch.equal(found["w"], a["w"] + b["w"])
    assert torch.equal(found["w"], b["w"] + a["w"])
    assert torch.equal(found["idle"], lanes[2]["idle"])
    straight = torch.stack([gradients["w"] for gradients in lanes]).double().sum(0)
    torch.testing.assert_close(found["w"].double(), straight, rtol=1e-5, atol=1e-6)


def test_ranks_of_other_kinds_are_named_on_all_of_them():
    recipe = imagenet128_debug()

    def refused(ranks: Ranks) -> str:
        device = torch.device("cpu" if ranks.rank < 2 else "meta")
        with pytest.raises(UserError) as found:
            check_alike(ranks, recipe, device, "none")
        return str(found.value)

    assert at_once(refused, 3) == ["rank 2 has another device than rank 0: meta, not cpu"] * 3

    def shard(ranks: Ranks) -> str:
        with pytest.raises(UserError) as found:
            check_alike(ranks, recipe, torch.device("cpu"), "full" if ranks.rank else "none")
        return str(found.value)

    assert at_once(shard, 2) == ["rank 1 has another shard than rank 0: full, not none"] * 2
    assert at_once(lambda ranks: check_alike(ranks, recipe, torch.device("cpu"), "none"), 2) == [None, None]
