"""Which device, how many threads and which of how many processes: the only file that asks what the machine has."""

import os

import torch

from pixelspace.errors import ResourceError, UserError


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"the environment's {name}: expected a whole number, found {text!r}")
    return int(text)


def world() -> int:
    """How many processes share the work, as `torchrun` says (WORLD_SIZE); 1 without it."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this one is (RANK), from 0.

    Raises:
        UserError: a rank that is not below their number.
    """
    if (found := _number("RANK", 0)) >= world():
        raise UserError(f"the environment's RANK is {found}, and WORLD_SIZE {world()}: ranks go from 0 below it")
    return found


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on; `auto` takes CUDA, then Apple's MPS, then the CPU. Of several CUDA devices each process
    of a machine takes its own, by LOCAL_RANK.

    Raises:
        ResourceError: a device that this machine or this build of torch lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ and (count := torch.cuda.device_count()):
        name = f"cuda:{_number('LOCAL_RANK', 0) % count}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(f"device {name!r} is not usable here: {str(error).splitlines()[0]}") from error
    return device
