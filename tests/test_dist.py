import pytest
import torch

from pixelspace.dist import pick_device
from pixelspace.errors import ResourceError


def test_a_device_is_picked_by_name_or_by_itself():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda", "mps")


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ResourceError, match="device 'tpu9' is not usable here"):
        pick_device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="device 'cuda' is not usable here"):
            pick_device("cuda")
