"""Several ranks are one: the same samples, losses, and in `exact` the same bits. Real processes, over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pixelspace import store
from pixelspace.nn.weights import digest
from pixelspace.training import checkpoint
from pixelspace.training.log import read_metrics

PROGRAM = Path(__file__).with_name("ranked.py")
IMAGES = 8  # a step


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(world: int, job: str | list[str], *arguments: str, port: int | None = None) -> list[subprocess.Popen]:
    """The ranks of one job, or each of its own, with the environment as torchrun sets it."""
    jobs = [job] * world if isinstance(job, str) else job
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port()), "WORLD_SIZE": str(world)}
    place |= {"LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"} if world == 4 else {}  # two machines of two
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), jobs[rank], *arguments],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def trained(world: int, runs: list[dict]) -> list[str]:
    """What was said; every rank must end well, and say nothing on the standard error."""
    ended = [(one.communicate(timeout=300), one.returncode) for one in started(world, json.dumps(runs))]
    assert [code for _, code in ended] == [0] * world, ended
    known = "find_unused_parameters=True was specified"  # where they are unused in later steps, or on other ranks
    assert [line for (_, errors), _ in ended for line in errors.splitlines() if known not in line] == []
    return [line for (said, _), _ in ended for line in said.splitlines()]


def losses(out: Path) -> dict[int, tuple[float, float]]:
    (folder,) = out.glob("00-*")
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in read_metrics(folder, "train")}


def held_out(out: Path) -> list[float]:
    (folder,) = out.glob("00-*")
    return [row["loss"] for row in read_metrics(folder, "validation")]


def state_of(folder: Path) -> tuple[dict, dict[str, str]]:
    """What the last checkpoint of a stage says, and the hash of each of its parts."""
    found = checkpoint.resume(folder / "checkpoints")
    assert found is not None
    return found.contents.state, {part: digest(tensors) for part, tensors in found.contents.parts.items()}


def check_equal(one: Path, other: Path, steps: int) -> None:
    """The same steps, with losses and gradients that differ by rounding."""
    a, b = losses(one), losses(other)
    assert sorted(b) == list(range(1, steps + 1))
    for step in b:
        assert a[step] == pytest.approx(b[step], rel=1e-6)
    if a.keys() == b.keys():
        assert held_out(one)[-1] == pytest.approx(held_out(other)[-1], rel=1e-6)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two ranks, then one, then four; the run `chain` goes on from each to the next."""
    root = tmp_path_factory.mktemp("ranks")

    def at(world: int, name: str, recipe: str = "hdit", **given) -> dict:
        return {"out": str(root / f"{name}-{world}"), "recipe": recipe, **given}

    def chain(steps: int, shard: str) -> dict:
        images = {"images": steps * IMAGES, "save_images": 10 * IMAGES}
        return {"out": str(root / "chain"), "recipe": "hdit", "set": images, "shard": shard}

    spoiled = {"set": {"images": 4 * IMAGES}, "spoiled": 2 * IMAGES + 5}
    exact = {"set": {"reduction": "exact", "lanes": 4}}
    small = [("masked", "none"), ("nested", "none"), ("uvit", "full"), ("growing", "full")]
    trained(
        2,
        [
            at(2, "ddp"),
            at(2, "ddp-micro", set={"micro": 2, "images": 4 * IMAGES}),
            at(2, "fsdp", shard="full"),
            at(2, "fsdp-micro", shard="full", set={"micro": 2, "images": 4 * IMAGES, "checkpointing": True}),
            at(2, "exact", **exact),
            *(at(2, name, name, shard=shard) for name, shard in small),
            *(at(2, f"spoiled-{shard}", shard=shard, **spoiled) for shard in ("none", "full")),
            chain(20, "full"),
        ],
    )
    few = [*(at(1, name, name) for name, _ in small), at(1, "spoiled", **spoiled)]
    trained(1, [at(1, "alone"), at(1, "exact", **exact), *few, chain(40, "none")])
    hybrid = at(4, "hybrid", shard="node", set={"images": 4 * IMAGES})
    trained(4, [at(4, "ddp"), at(4, "exact", **exact), hybrid, chain(60, "full")])
    return root


@pytest.mark.parametrize("name", ["ddp-2", "fsdp-2", "ddp-4"])
def test_losses_of_60_steps_are_those_of_one_process(runs, name):
    check_equal(runs / "alone-1", runs / name, 60)


@pytest.mark.parametrize("name", ["ddp-micro-2", "fsdp-micro-2", "hybrid-4"])
def test_micro_batches_and_machines_of_ranks_add_up_to_the_same_losses(runs, name):
    check_equal(runs / "alone-1", runs / name, 4)


def test_machines_that_hold_copies_store_them_once(runs):
    (folder,) = (runs / "hybrid-4").glob("00-*/checkpoints/step-*")
    assert {path.name for path in folder.glob("model*")} == {"model.safetensors", "model.1.safetensors"}


@pytest.mark.parametrize("world", [2, 4])
def test_exact_sums_have_the_same_bits_on_any_number_of_ranks(runs, world):
    (alone, bits), (ranked, same) = (state_of(runs / f"exact-{n}" / "00-train") for n in (1, world))
    assert same == bits
    assert ranked["world"] == world
    assert losses(runs / f"exact-{world}") == losses(runs / "exact-1")
    assert alone["ema_updates"] == ranked["ema_updates"] == 60


def test_exact_sums_are_other_bits_than_fast_ones_of_the_same_training(runs):
    check_equal(runs / "alone-1", runs / "exact-1", 60)
    assert state_of(runs / "exact-1" / "00-train")[1] != state_of(runs / "alone-1" / "00-train")[1]


def test_a_run_goes_from_two_sharded_ranks_to_one_to_four(runs):
    check_equal(runs / "alone-1", runs / "chain", 60)
    worlds = {path.name: store.read_state(path, kind="checkpoint")["world"] for path in runs.glob("chain/*/*/step-*")}
    assert worlds == {
        **{f"step-{step:08d}": 2 for step in (10, 20)},
        **{f"step-{step:08d}": 1 for step in (30, 40)},
        **{f"step-{step:08d}": 4 for step in (50, 60)},
    }


@pytest.mark.parametrize(("name", "steps"), [("masked", 4), ("nested", 3), ("uvit", 3)])
def test_every_system_is_trained_by_two_ranks_as_by_one(runs, name, steps):
    check_equal(runs / f"{name}-1", runs / f"{name}-2", steps)


@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_sample_of_one_rank_that_is_not_finite_leaves_the_step_out_on_all(runs, shard):
    alone, ranked = (runs / f"spoiled-{name}" / "00-train" for name in ("1", f"{shard}-2"))
    (one,), (two,) = (read_metrics(folder, "not_finite") for folder in (alone, ranked))
    assert one["step"] == two["step"] == 2
    rows = [json.loads(path.read_text()) for path in sorted((ranked / "replay").iterdir())]
    lost = [sample["pos"] for row in rows for sample in row["samples"] if sample["loss"] == "nan"]
    assert lost == [2 * IMAGES + 5] and len(rows) == 2
    before, after = losses(runs / "spoiled-1"), losses(runs / f"spoiled-{shard}-2")
    assert sorted(before) == sorted(after) == [1, 2, 4]
    assert all(before[step] == pytest.approx(after[step], rel=1e-6) for step in after)
    assert state_of(ranked)[0]["bad_steps"] == [2]


def test_stages_that_inherit_freeze_and_release_are_sharded(runs):
    for folder in ("00-core", "01-grown", "02-released"):
        one, two = (read_metrics(runs / f"growing-{world}" / folder, "train") for world in (1, 2))
        assert len(one) == 3
        assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-5)
        born, ranked = (state_of(runs / f"growing-{world}" / folder)[0]["ema_born"] for world in (1, 2))
        assert ranked == born


def test_each_rank_stores_its_own_rows_once(runs):
    def stored(name: str) -> int:
        (path,) = (runs / name).glob("00-*/checkpoints/step-00000060")
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))

    (sharded,) = (runs / "fsdp-2").glob("00-*/checkpoints/step-00000060")
    assert {path.name for path in sharded.glob("model*")} == {"model.safetensors", "model.1.safetensors"}
    assert stored("fsdp-2") == pytest.approx(stored("alone-1"), rel=0.05)
