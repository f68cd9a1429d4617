import pytest
import torch

from pixelspace.dist import pick_device, rank, world
from pixelspace.errors import ResourceError, UserError


def test_a_device_is_picked_by_name_or_by_itself():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda", "mps")


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
