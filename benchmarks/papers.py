"""What `pixelspace plan` says of the papers' own trainings, beside what they say themselves, as Markdown.

    python benchmarks/papers.py

Nothing is run: recipes give the work, papers the devices, the time and, MaskDiT's alone, the memory. The last column of
the first table is the efficiency at which the stated time would be the arithmetic's alone; where none is stated there
is no error. All that was trained did fit, so that memory plays no part in it.
"""

from dataclasses import dataclass, replace

from pixelspace.cli.given import recipe_of
from pixelspace.training.cost import DAY, HOUR, Machine, cost, state_bytes, total
from pixelspace.training.work import works

A100, H100 = 312e12, 989e12  # peaks of dense bfloat16 (NVIDIA's data sheets)


@dataclass(frozen=True)
class Training:
    """As a paper has it: which recipe, and of that the first `stages` (0: all), devices and their peak, and the
    device-seconds it states (0: none), in its own words."""

    recipe: str
    devices: int
    peak: float
    stated: float
    words: str
    stages: int = 0


TRAININGS = (
    Training("hdit-imagenet128", 4, A100, 4 * 15 * HOUR, "15 h"),
    Training("hdit-ffhq1024", 64, A100, 64 * 5 * DAY, "5 days"),
    Training("hdit-imagenet256", 8, H100, 8 * 7.6 * DAY, "7.6 days"),
    Training("maskdit-imagenet256", 8, A100, 8 * 260 * HOUR, "about 260 h for 2M steps", stages=1),
    Training("maskdit-imagenet512", 32, A100, 209 * DAY, "209 A100-days for 1M steps", stages=1),
    Training("mdm-imagenet256", 8, A100, 0, "none"),
    Training("mdm-cc12m-paper", 32, A100, 0, "none"),
)

# Of MaskDiT's first stage: recipe, precision, images on a device at once, gigabytes of a device read off the bar charts
# of its README (those above 80 are not what an A100 has, and presumably sums).
MEMORY = (
    ("maskdit-imagenet256", "bf16", 32, 26),
    ("maskdit-imagenet256", "bf16", 128, 50),
    ("maskdit-imagenet256", "fp32", 32, 28),
    ("maskdit-imagenet256", "fp32", 128, 65),
    ("maskdit-imagenet512", "bf16", 32, 47),
    ("maskdit-imagenet512", "bf16", 128, 153),
    ("maskdit-imagenet512", "fp32", 32, 58),
    ("maskdit-imagenet512", "fp32", 128, 177),
)


def _rows(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows))


def _time(training: Training) -> tuple[str, ...]:
    machine = Machine(devices=training.devices, memory=80e9, flops=training.peak)
    counted = [work for work, _ in works(recipe_of(training.recipe)).values()][: training.stages or None]
    costs = [cost(work, machine, lambda checkpointing: (0, 0)) for work in counted]
    planned = total(costs).device_days
    operations = sum(work.flops(False) * work.images for work in counted)
    devices = f"{training.devices} {'A100' if training.peak == A100 else 'H100'}"
    known = (training.recipe, devices, training.words, f"{operations:.2e}")
    if not training.stated:
        return *known, "-", f"{planned:,.1f}", "-", "-"
    error, reached = planned * DAY / training.stated - 1, operations / (training.stated * training.peak)
    return *known, f"{training.stated / DAY:,.1f}", f"{planned:,.1f}", f"{error:+.0%}", f"{reached:.1%}"


def times() -> str:
    """The table of times."""
    heads = ("recipe", "devices", "time in the paper", "operations", "device-days", "planned", "error", "efficiency")
    return _rows(heads, [_time(training) for training in TRAININGS])


def memory(given: tuple[tuple[str, str, int, int], ...] = MEMORY) -> str:
    """The table of memory."""
    rows, known = [], {}
    for name, precision, images, stated in given:
        if (name, precision) not in known:
            recipe = recipe_of(name)
            stage = replace(recipe.stages[0], precision=precision)
            work, activations = works(replace(recipe, stages=(stage,)))[stage.name]
            machine = Machine(devices=1, memory=80e9, flops=A100)
            known[name, precision] = state_bytes(work, machine, "none", 1), *activations(False)
        state, one, each = known[name, precision]
        planned = (state + one + each * (images - 1)) / 1e9
        rows.append((name, precision, f"{images}", f"{stated}", f"{planned:.0f}", f"{planned / stated - 1:+.0%}"))
    return _rows(("recipe", "precision", "images at once", "GB stated", "planned", "error"), rows)


if __name__ == "__main__":
    print(times(), memory(), sep="\n\n")
