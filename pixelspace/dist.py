"""Which device and how many threads: the only file that asks what the machine has."""

import torch

from pixelspace.errors import ResourceError


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ResourceError: a device that this machine or this build of torch lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(f"device {name!r} is not usable here: {str(error).splitlines()[0]}") from error
    return device
