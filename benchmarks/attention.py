"""Neighborhood attention: time and peak memory of every backend, in one run.

    python benchmarks/attention.py [--device cpu] [--dtype float32] [--grids 16 32 64 128 256] [--repeats 7]

Kernel 7, 2 heads of 64, stored head by head as networks on a CPU write them. Each cell is a process of its own, and
another one for its memory, in which what is freed is given back; repeats go round the backends in turn, so that a busy
moment of the machine hits all of them. Prints a Markdown table: median (fastest to slowest) milliseconds, and how many
times as fast as the dense-mask reference, which needs the square of the tokens and stops at 64 x 64. Memory is of the
first call, with its masks and, where it is compiled, the compiler's; time of the second. FlexAttention is compiled on
CUDA, and eager on a CPU.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

from measure import RETURNS_MEMORY, forget_peak, peak_bytes

from pixelspace.cli.machine import prepare

KERNEL, HEADS, HEAD_DIM, LARGEST_DENSE = 7, 2, 64, 64
COMPILED = "compiled "
BACKENDS = ("reference", "halo", "compiled halo", "flex", "natten")


def cell(backend: str, grid: int, batch: int, dtype: str, device: str) -> dict:
    """One measurement in this process: {forward, backward} seconds and {forward_bytes, backward_bytes} above inputs."""
    import torch

    from pixelspace.nn.attention import neighborhood_attention

    attention = torch.compile(neighborhood_attention, dynamic=False) if COMPILED in backend else neighborhood_attention

    def timed(step):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        out = step()
        if device == "cuda":
            torch.cuda.synchronize()
        return out, time.perf_counter() - began

    backend = backend.removeprefix(COMPILED)
    grads = backend != "flex" or device == "cuda"  # FlexAttention has no backward pass on the CPU

    def both(inputs):
        out, forward = timed(lambda: attention(*inputs, KERNEL, backend))
        held = peak_bytes(device)
        gradient = torch.ones_like(out)
        backward = timed(lambda: out.backward(gradient))[1] if grads else 0.0
        return forward, backward, held, peak_bytes(device)

    def random(side: int) -> list:
        shape = (batch, HEADS, side, side, HEAD_DIM)
        values = [torch.randn(shape, dtype=getattr(torch, dtype), device=device) for _ in range(3)]
        return [value.permute(0, 2, 3, 1, 4).requires_grad_(grads) for value in values]

    both(random(8))  # loads what must be loaded; its own graph, if compiled
    inputs = random(grid)
    forget_peak(device)
    before = peak_bytes(device)
    _, _, forward_peak, backward_peak = both(inputs)  # builds masks, compiles
    forward, backward, _, _ = both(inputs)
    found = {"forward": forward, "forward_bytes": forward_peak - before}
    return found | ({"backward": forward + backward, "backward_bytes": backward_peak - before} if grads else {})


def measured(backend: str, grid: int, given: argparse.Namespace) -> dict | str:
    """`cell` in processes of its own, or why it could not be."""
    command = [sys.executable, __file__, "--cell", backend, "--grids", str(grid), "--dtype", given.dtype]
    command += ["--device", given.device, "--batch", str(given.batch)]
    found: dict = {}
    for environment in (RETURNS_MEMORY, {}):
        ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        if ran.returncode:
            return ran.stderr.strip().splitlines()[-1]
        found |= {key: one for key, one in json.loads(ran.stdout).items() if environment or not key.endswith("_bytes")}
    return found


def column(cells: list[dict], key: str, reference: float | None) -> str:
    """Median, spread and ratio of one quantity."""
    if not cells or key not in cells[0]:
        return "not supported"
    times = sorted(1e3 * one[key] for one in cells)
    middle = statistics.median(times)
    ratio = f", {reference / middle:.1f}x" if reference else ""
    return f"{middle:.1f} ({times[0]:.1f} - {times[-1]:.1f}){ratio}"


def main() -> None:
    """Prints the table, or as a child process one of its cells."""
    prepare()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--grids", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cell", choices=BACKENDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(json.dumps(cell(given.cell, given.grids[0], given.batch, given.dtype, given.device)))
        return
    import torch

    name = torch.cuda.get_device_name() if given.device == "cuda" else f"{platform.machine()} CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {given.dtype}, batch {given.batch}\n")
    print("| tokens | backend | forward ms | forward + backward ms | peak MB, forward | peak MB, both |")
    print("| --- | --- | --- | --- | --- | --- |")
    for grid in given.grids:
        square = ("reference", "flex") if given.device == "cpu" else ("reference",)  # eager flex is dense there
        backends = [one for one in BACKENDS if one not in square or grid <= LARGEST_DENSE]
        cells: dict[str, list] = {backend: [] for backend in backends}
        absent = {}
        for _ in range(given.repeats):
            for backend in backends:
                if backend not in absent:
                    found = measured(backend, grid, given)
                    if isinstance(found, str):
                        absent[backend] = found
                    else:
                        cells[backend].append(found)
        base = cells.get("reference")
        for backend in backends:
            if backend in absent:
                reason = absent[backend].rpartition("Error: ")[2].replace("|", "/")
                print(f"| {grid}x{grid} | {backend} | {reason} | | | |")
                continue
            row = [f"{grid}x{grid}", backend]
            for key in ("forward", "backward"):
                slow = 1e3 * statistics.median(one[key] for one in base) if base and backend != "reference" else None
                row.append(column(cells[backend], key, slow))
            for key in ("forward_bytes", "backward_bytes"):
                held = [one[key] for one in cells[backend] if key in one]
                row.append(f"{statistics.median(held) / 2**20:.0f}" if held else "")
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
