"""How long the command line takes to say something: its help, the list of recipes, and what `show` says of each.

    python benchmarks/startup.py [--repeats 5] [--debug] [NAME ...]

Each command is a process of its own; repeats go round the commands, so that a busy moment hits all of them. Prints
Markdown: median (fastest to slowest) of the seconds that pass and of those in which the processor works for the
command, which other work on the machine disturbs less, and whether the command loaded torch.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from statistics import median

BARS = {"--help": 0.5, "recipes": 0.5, "show": 4.0}
LOADED = (
    "import sys; from pixelspace.cli import main; code = main(sys.argv[1:]); "
    "sys.exit(code or 100 * ('torch' in sys.modules))"
)


def ran(arguments: list[str]) -> tuple[float, float]:
    """Seconds that one command takes, and those that the processor works for it."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "pixelspace", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    passed, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loads_torch(arguments: list[str]) -> bool:
    """Whether a command that succeeds has loaded torch in the end."""
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], stdout=subprocess.DEVNULL)
    assert done.returncode in (0, 1, 100), arguments
    return done.returncode != 0


def column(times: list[float]) -> str:
    """Median and spread."""
    return f"{median(times):.2f} ({min(times):.2f} - {max(times):.2f})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes to show; all but debug ones by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--debug", action="store_true", help="show the debug recipes, too")
    given = parser.parse_args()

    from pixelspace.recipes import RECIPES

    names = given.names or [name for name in RECIPES if given.debug or not name.endswith("-debug")]
    commands = [["--help"], ["recipes"], *(["show", name] for name in names)]
    times = {tuple(command): [] for command in commands}
    for _ in range(given.repeats):
        for command, found in times.items():
            found.append(ran(list(command)))
    print(f"{os.cpu_count()} CPUs {platform.machine()}, Python {platform.python_version()}, {given.repeats} repeats\n")
    print("| command | seconds | of the processor | bar | torch |")
    print("| --- | --- | --- | --- | --- |")
    for command, found in times.items():
        passed, worked = (list(some) for some in zip(*found, strict=True))
        torch = "yes" if loads_torch(list(command)) else "no"
        row = f"`pixelspace {' '.join(command)}`", column(passed), column(worked), f"{BARS[command[0]]}", torch
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
