import math
import random
import re
from dataclasses import replace

import pytest
import torch

from pixelspace.errors import UserError
from pixelspace.training import checkpoint
from pixelspace.training.cost import (
    Machine,
    Work,
    best_interval,
    check_devices,
    cost,
    expected,
    layouts,
    saves_kept,
    shardings,
    state_bytes,
    total,
    traffic_seconds,
)

ONE = Machine(devices=1, memory=80e9, flops=100e12, efficiency=0.5)
TWO_NODES = replace(ONE, devices=16, per_node=8, bandwidth=1e9, node_bandwidth=10e9)
WORK = Work(
    name="train",
    batch=64,
    lanes=64,
    images=6400,
    save_images=640,
    keep_every=2,
    precision="bf16",
    parameters=10**9,
    learnt=10**9,
    gathered=10**8,
    state_bytes=20 * 10**9,
    checkpoint_bytes=16 * 10**9,
    forward=1e12,
    backward=2e12,
    reading=0,
    reading_bytes=0,
    sample_bytes=1000,
)


def nothing_kept(checkpointing):
    return 0, 0


def test_the_arithmetic_is_what_the_devices_reach_in_the_time():
    free = replace(TWO_NODES, bandwidth=1e30, node_bandwidth=1e30)
    for machine in (ONE, free):
        found = cost(WORK, machine, nothing_kept)
        done = found.training_seconds * machine.devices * machine.flops * machine.efficiency
        assert done == pytest.approx(6 * 1e12 * WORK.images)
        assert found.images_per_second * found.training_seconds == pytest.approx(WORK.images)
        assert found.bytes_per_second == pytest.approx(1000 * found.images_per_second)


def test_each_precision_has_its_own_peak():
    step = cost(WORK, ONE, nothing_kept).chosen.step
    assert cost(replace(WORK, precision="tf32"), ONE, nothing_kept).chosen.step == pytest.approx(2 * step)
    full = replace(WORK, precision="fp32")
    assert cost(full, ONE, nothing_kept).chosen.step == pytest.approx(16 * step)
    assert cost(full, replace(ONE, fp32_flops=10e12), nothing_kept).chosen.step == pytest.approx(10 * step)


def test_what_is_shared_by_all_is_there_once():
    whole = state_bytes(replace(WORK, gathered=0), ONE, "none", 1)
    assert whole == WORK.state_bytes
    assert 16 * state_bytes(replace(WORK, gathered=0), TWO_NODES, "full", 1) == pytest.approx(whole)
    assert 8 * state_bytes(replace(WORK, gathered=0), TWO_NODES, "node", 1) == pytest.approx(whole)
    assert state_bytes(WORK, TWO_NODES, "full", 2) > state_bytes(WORK, TWO_NODES, "full", 1) + 3.7e9  # gradients, whole


def test_traffic_is_that_of_rings():
    gradients = 4 * WORK.learnt
    assert traffic_seconds(WORK, ONE, "none", 1) == 0
    assert traffic_seconds(WORK, TWO_NODES, "none", 1) == pytest.approx(2 * 15 / 16 * gradients / 1e9)
    assert traffic_seconds(WORK, TWO_NODES, "full", 1) == pytest.approx(15 / 16 * 3 * gradients / 1e9)
    within, between = 7 / 8 * 3 * gradients / 10e9, 2 * 1 / 2 * gradients / 8 / 1e9
    assert traffic_seconds(WORK, TWO_NODES, "node", 1) == pytest.approx(within + between)
    one_node = replace(TWO_NODES, devices=8)
    assert traffic_seconds(WORK, one_node, "full", 1) == pytest.approx(within)
    twice = traffic_seconds(WORK, one_node, "full", 2) - traffic_seconds(WORK, one_node, "full", 1)
    assert twice == pytest.approx(7 / 8 * 2 * gradients / 10e9)  # weights are gathered again, gradients are not


def test_frozen_weights_are_gathered_but_not_reduced():
    still = replace(WORK, learnt=0, state_bytes=4 * WORK.parameters)
    assert traffic_seconds(still, TWO_NODES, "none", 1) == 0
    assert traffic_seconds(still, TWO_NODES, "full", 1) == pytest.approx(15 / 16 * 2 * 4e9 / 1e9)


def test_shardings_are_those_that_differ():
    assert shardings(WORK, ONE) == ("none",)
    assert shardings(WORK, replace(ONE, devices=8)) == ("none", "full")
    assert shardings(WORK, TWO_NODES) == ("none", "node", "full")
    assert shardings(WORK, replace(TWO_NODES, devices=12)) == ("none", "full")


def test_what_cannot_be_sharded_is_whole_on_every_device():
    whole = replace(WORK, shardable=False)
    assert shardings(whole, TWO_NODES) == ("none",)
    with pytest.raises(UserError, match=r"sharding none, .*; allow sharding \(ema_device same"):
        cost(whole, replace(TWO_NODES, memory=16e9), nothing_kept)


@pytest.mark.parametrize("each", [1e9, 3e9, 7e9, 40e9])
def test_the_micro_batch_is_the_largest_divisor_that_there_is_room_for(each):
    found = layouts(replace(WORK, batch=48), ONE, lambda checkpointing: (2 * each, each))[0]
    room = 72e9 - 20e9
    assert found.micro == max((m for m in range(1, 49) if 48 % m == 0 and each * (m + 1) <= room), default=0)
    assert found.accumulation * max(found.micro, 1) == 48 and (found.bytes <= 72e9) == (found.micro > 0)


def test_blocks_are_checkpointed_only_where_that_is_faster_or_there_is_no_room():
    asked = []

    def roomy(checkpointing):
        asked.append(checkpointing)
        return 1_000, 1_000

    assert not cost(WORK, ONE, roomy).chosen.checkpointing and asked == [False]

    def tight(checkpointing):
        return (10**9, 10**9) if checkpointing else (60 * 10**9, 60 * 10**9)

    chosen = cost(WORK, ONE, tight).chosen
    assert chosen.checkpointing and chosen.compute == pytest.approx(4 / 3 * cost(WORK, ONE, roomy).chosen.compute)


def test_of_steps_that_hardly_differ_the_simplest_is_taken():
    slow = replace(TWO_NODES, bandwidth=1e9, overlap=0.0)
    steps = {one.sharding: one.step for one in cost(WORK, slow, nothing_kept).layouts}
    assert min(steps, key=lambda name: steps[name]) == "node"
    assert cost(WORK, slow, nothing_kept).chosen.sharding == "node"
    nearly = replace(TWO_NODES, bandwidth=1e12, overlap=0.0)
    steps = {one.sharding: one.step for one in cost(WORK, nearly, nothing_kept).layouts if not one.checkpointing}
    assert steps["none"] <= 1.05 * min(steps.values())
    assert cost(WORK, nearly, nothing_kept).chosen.sharding == "none"


def test_devices_of_the_size_that_a_refusal_names_have_room():
    def kept(checkpointing):
        return 9 * 10**9, 10**9

    small = replace(TWO_NODES, memory=10e9)
    with pytest.raises(UserError, match=r"stage 'train': no room.* sharding full, .* there are 9.0 ") as refused:
        cost(WORK, small, kept)
    size = re.search(r"devices of (\d+) GB", str(refused.value))
    assert size and cost(WORK, replace(small, memory=1e9 * int(size[1])), kept).chosen.micro
    with pytest.raises(UserError, match="no room"):
        cost(WORK, replace(small, memory=1e9 * (int(size[1]) - 1)), kept)


def test_devices_share_the_lanes_of_all_batches():
    works = [WORK, replace(WORK, name="next", batch=96, lanes=32)]
    check_devices(works, 32)
    with pytest.raises(UserError, match=r"64 cannot share the 32 lanes of a batch of 96 \(stage 'next'\); nearest 32;"):
        check_devices(works, 64)
    with pytest.raises(UserError, match="nearest 4 and 8; those that can for all stages: 1, 2, 4, 8, 16, 32"):
        check_devices(works, 6)
    with pytest.raises(UserError, match=r"12 cannot share .*; or set stages.\*.lanes=12$"):
        check_devices([replace(WORK, batch=768)], 12)


@pytest.mark.parametrize(("interval", "write", "mtbf", "restart"), [(100, 5, 400, 20), (300, 40, 200, 0)])
def test_expected_time_is_what_random_failures_give(interval, write, mtbf, restart):
    chance, passed, pieces = random.Random(0), 0.0, 20_000
    for _ in range(pieces):
        while (lived := chance.expovariate(1 / mtbf)) < interval + write:
            passed += lived
            while (again := chance.expovariate(1 / mtbf)) < restart:  # a restart may fail, too
                passed += again
            passed += restart
        passed += interval + write
    assert expected(interval, write, mtbf, restart) == pytest.approx(passed / pieces / interval, rel=0.03)


def test_without_failures_only_writing_is_lost():
    assert expected(100, 5, math.inf, 300) == 1.05
    assert expected(100, 5, 1e9, 0) == pytest.approx(1.05, rel=1e-6)
    found = cost(WORK, ONE, nothing_kept)
    assert found.best is None and found.seconds == pytest.approx(found.training_seconds + 10 * found.write_seconds)


@pytest.mark.parametrize("ratio", [1e-6, 1e-3, 0.1, 0.5])
def test_the_best_interval_is_where_the_expected_time_is_least(ratio):
    mtbf = 1000.0
    found = best_interval(ratio * mtbf, mtbf)
    least = min(expected(found * 1.02**i, ratio * mtbf, mtbf, 0) for i in range(-100, 100))
    assert expected(found, ratio * mtbf, mtbf, 0) <= least * 1.001
    if ratio < 1e-5:
        assert found == pytest.approx(math.sqrt(2 * ratio) * mtbf, rel=1e-2)  # Young's


def test_a_recipe_that_would_never_end_is_refused_with_a_better_interval():
    often = replace(ONE, mtbf=0.005, restart=0)
    seldom = replace(WORK, save_images=6400)
    with pytest.raises(UserError, match=r"it would not get on; set save_images to ([\d,]+)") as refused:
        cost(seldom, often, nothing_kept)
    images = int(str(refused.value).rpartition(" ")[2].replace(",", ""))
    found = cost(replace(WORK, save_images=images), often, nothing_kept)
    assert found.saving == found.best


@pytest.mark.parametrize(("steps", "every", "keep"), [(12, 1, 5), (11, 2, 2), (7, 3, 1), (2, 5, 1)])
def test_as_many_checkpoints_stay_as_pruning_leaves(tmp_path, steps, every, keep):
    for step in range(1, steps + 1):
        if step % every == 0 or step == steps:
            checkpoint.save(tmp_path, step, {"model": {"w": torch.zeros(1)}}, {})
            checkpoint.prune(tmp_path, keep_last=3, keep_every=every * keep)
    work = replace(WORK, batch=8, images=8 * steps, save_images=8 * every, keep_every=keep)
    assert saves_kept(work) == len(checkpoint.candidates(tmp_path))


def test_a_recipe_costs_what_its_stages_cost():
    costs = [cost(WORK, replace(ONE, price=2.0), nothing_kept)] * 2
    whole = total(costs)
    assert whole.seconds == 2 * costs[0].seconds
    assert whole.price == pytest.approx(2.0 * whole.seconds / 3600)
    assert whole.checkpoint_bytes == (2 * costs[0].kept + 1) * WORK.checkpoint_bytes


@pytest.mark.parametrize(
    ("field", "given", "words"),
    [
        ("devices", 0, "at least 1"),
        ("memory", 80.0, "is a unit missing, as in 80GB"),
        ("flops", 0.0, "flops must be positive"),
        ("efficiency", 1.5, r"efficiency must be in \(0, 1\]"),
        ("overlap", 1.0, r"overlap must be in \[0, 1\)"),
        ("mtbf", -1.0, "mtbf cannot be negative"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(field, given, words):
    with pytest.raises(ValueError, match=words):
        replace(ONE, **{field: given})
