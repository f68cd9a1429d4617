from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pixelspace.dist import Ranks, joined, peak_bytes, pick_device, rank, world
from pixelspace.errors import PeerError, ResourceError, UserError


def at_once(work, count: int) -> list:
    """What each of so many ranks makes of `work(ranks)`; here they are threads."""
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(work, Ranks(rank, count, store)) for rank in range(count)]
        return [job.result(timeout=30) for job in jobs]


class Late:
    """A store in which what a peer told is seen only once its failure has been: it told that first."""

    def __init__(self, store):
        self.store, self.asked = store, 0

    def __getattr__(self, name):
        return getattr(self.store, name)

    def check(self, keys):
        self.asked += keys == ["met/1/1"]
        return (keys != ["met/1/1"] or self.asked > 1) and self.store.check(keys)


def test_who_fails_by_what_all_were_told_is_heard_first():
    store = torch.distributed.HashStore()
    store.set("met/1/1", '"other"')
    store.set("failed", "rank 1: has another recipe")
    assert Ranks(0, 2, Late(store)).meet("mine") == ["mine", "other"]
    store.delete_key("met/1/1")
    with pytest.raises(PeerError, match="stopped because of rank 1: has another recipe"):
        Ranks(0, 2, store).meet("mine")


def test_a_device_is_picked_by_name_or_by_itself():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda", "mps")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no Linux to compare with")
def test_the_peak_of_memory_is_what_the_kernel_says_and_never_falls():
    held = torch.ones(1 << 26)
    high = peak_bytes(torch.device("cpu"))
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    assert held.nbytes <= high == pytest.approx(1024 * int(line.split()[1]), rel=0.01)
    del held
    assert peak_bytes(torch.device("cpu")) >= high


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ResourceError, match="device 'tpu9' is not usable here"):
        pick_device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="device 'cuda' is not usable here"):
            pick_device("cuda")


def test_rank_and_world_are_those_of_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (rank(), world()) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (rank(), world()) == (3, 4)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(UserError, match="RANK is 4, and WORLD_SIZE 4"):
        rank()
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="WORLD_SIZE: expected a whole number, found 'many'"):
        world()


@pytest.mark.gpu
def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count() - 1))
    assert pick_device() == pick_device("cuda") == torch.device("cuda", torch.cuda.device_count() - 1)


def test_ranks_that_meet_see_what_all_say_in_order():
    def work(ranks: Ranks) -> list:
        return [ranks.meet([ranks.rank, "é", None]), ranks.meet({"again": ranks.rank})]

    said = [[[rank, "é", None] for rank in range(4)], [{"again": rank} for rank in range(4)]]
    assert at_once(work, 4) == [said] * 4
    assert Ranks().meet("alone") == ["alone"]


def test_the_first_rank_has_its_turn_before_the_others():
    order = []

    def work(ranks: Ranks) -> None:
        with ranks.in_turn():
            order.append(ranks.rank)

    at_once(work, 3)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_who_waits_for_a_rank_that_failed_hears_of_it():
    def work(ranks: Ranks) -> str:
        if ranks.rank == 1:
            ranks._store.set("failed", "rank 1: no disk")
            return ""
        with pytest.raises(PeerError) as found:
            ranks.meet()
        return str(found.value)

    assert at_once(work, 2) == ["rank 0: stopped because of rank 1: no disk", ""]


def test_a_process_alone_joins_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.world, ranks.first, ranks.meet(1)) == (0, 1, True, [1])
    assert not torch.distributed.is_initialized()


def test_a_device_that_works_alone_and_a_missing_address_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(UserError, match="device 'meta' cannot work with others; start one process"),
        joined(torch.device("meta")),
    ):
        pass
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(UserError, match=r"MASTER_ADDR expected, but not set; start the ranks by torchrun"),
        joined(torch.device("cpu")),
    ):
        pass
