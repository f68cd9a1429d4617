"""What the benchmarks measure memory with, and show times with."""

import statistics

# For the environment of a process whose peak is measured: otherwise freed memory stays with it and hides later peaks.
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
SPINS_LITTLE = {"GOMP_SPINCOUNT": "1000"}  # as the command line has it


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def held_bytes(device: str) -> int:
    """The memory this process holds now."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    return _resident("VmRSS")


def peak_bytes(device: str) -> int:
    """The most memory this process has held so far."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM")


def forget_peak(device: str) -> None:
    """Lets `peak_bytes` start again from what the process holds now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")


def column(times: list[float], reference: list[float]) -> str:
    """Median, spread and ratio."""
    middle = statistics.median(times)
    ratio = statistics.median(reference) / middle
    return f"{1e3 * middle:.0f} ({1e3 * min(times):.0f} - {1e3 * max(times):.0f}), {ratio:.2f}x"
