"""How fast images are drawn: by every sampler, by every system, with guidance and compiled.

    python benchmarks/sample.py > benchmarks/sample_2vcpu_202611.md

The demo's network (32 px, bfloat16) draws by `Model.sample` with each sampler at two numbers of steps; `dpm_adaptive`
chooses its own and is left out. One network of each system (64 px, 3 to 5 million parameters, those of step.py,
float32) draws by the second order sampler dpmpp_2m: without guidance, with both halves of guidance in one batch, as we
do it, and with two calls, as one would first write it; eager and compiled. Networks are fresh: time does not depend on
weights. Repeats go round the rows of a network, after one in which they load, allocate and compile; on a CPU they take
one thread, whose own time counts. Median (slowest - fastest) images a second.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from measure import asked, machine, seconds
from pyramids import backbone_of, objective_of
from step import CLASSES, SIDE, WIDTHS, systems

from pixelspace.cli.machine import prepare

STEPS, GUIDED_STEPS, GUIDANCE = (10, 25), 5, 2.0
GUIDED = ("none", "one batch", "two calls")

Action = Callable[[], object]


def rates(actions: Mapping[Any, Action], given: argparse.Namespace) -> dict[Any, list[float]]:
    """Images a second of each action, of every repeat."""
    found: dict[Any, list[float]] = {key: [] for key in actions}
    for repeat in range(given.repeats + 1):
        for key, action in actions.items():
            took = seconds(action, given.device)
            if repeat:
                found[key].append(given.batch / took)
    return found


def shown(values: list[float]) -> str:
    """Median and spread."""
    return f"{median(values):.3g} ({min(values):.3g} - {max(values):.3g})"


def by_sampler(given: argparse.Namespace) -> None:
    """The demo's network with every sampler."""
    from pixelspace.model import Model
    from pixelspace.model_config import ModelConfig
    from pixelspace.recipes.hdit import demo
    from pixelspace.sampling.solvers import SOLVERS

    (stage,) = demo().stages
    model = Model(ModelConfig.of(stage), stage.backbone.build().state_dict(), given.device)
    calls = []
    model.backbone.register_forward_hook(lambda *ran: calls.append(1))

    def drawing(sampler: str, steps: int) -> Action:
        return partial(
            model.sample, given.batch, sampler=sampler, steps=steps, batch=given.batch, guidance=1.0, progress=False
        )

    keys = [(sampler, steps) for sampler in SOLVERS if sampler != "dpm_adaptive" for steps in STEPS]
    actions = {key: drawing(*key) for key in keys}
    found = rates(actions, given)
    print("| sampler | steps | calls of the network | images/s | ms a call of all |\n| --- | --- | --- | --- | --- |")
    for sampler, steps in keys:
        calls.clear()
        actions[sampler, steps]()
        each = 1e3 * given.batch / median(found[sampler, steps]) / len(calls)
        print(f"| {sampler} | {steps} | {len(calls)} | {shown(found[sampler, steps])} | {each:.1f} |")


def networks() -> dict[str, tuple[Any, Any]]:
    """One of each system, and their objectives."""
    nested = (SIDE, SIDE // 2)
    unet = backbone_of(nested, WIDTHS["toy"], num_classes=CLASSES), objective_of(nested)
    return {**systems("toy"), "nested UNet": unet}


def drawings(backbone: Any, objective: Any, given: argparse.Namespace) -> dict[tuple[str, str], Action]:
    """What draws a batch, by the way of guidance and eager or compiled."""
    import torch

    from pixelspace.noise.levels import Karras, grid
    from pixelspace.sampling.denoiser import Denoise, denoiser, guided_by
    from pixelspace.sampling.pyramid import Packing
    from pixelspace.sampling.solvers import SOLVERS
    from pixelspace.training.words import asked as told

    network = backbone.build().eval().requires_grad_(False).to(given.device)
    shape, pyramid = (backbone.channels, SIDE, SIDE), objective.layout
    packing = Packing(pyramid, shape) if pyramid else None
    labels = torch.arange(given.batch, device=given.device) % CLASSES
    cond, null = told(labels, (SIDE, SIDE), {}, {})
    state = pyramid.drawn(shape) if pyramid else shape
    sigmas = grid(Karras(0.02, 80.0), GUIDED_STEPS)
    x = torch.randn(given.batch, *state, device=given.device) * float(sigmas[0])

    def guided(forward: Any, way: str) -> Denoise:
        under = partial(packing.denoiser if packing else denoiser, forward, objective.process)
        conditioned = under(cond)
        if way == "one batch":
            return guided_by(under, cond, null, GUIDANCE)
        plain = under({**cond, **null})
        return conditioned if way == "none" else lambda x, s: torch.lerp(plain(x, s), conditioned(x, s), GUIDANCE)

    def drawing(forward: Any, way: str) -> Action:
        denoise = guided(forward, way)

        def draw() -> None:
            with torch.no_grad():
                SOLVERS["dpmpp_2m"].function(denoise, x, sigmas)

        return draw

    forwards = {"eager": network, "compiled": torch.compile(network, dynamic=False)}
    return {(how, way): drawing(forward, way) for how, forward in forwards.items() for way in GUIDED}


def by_system(given: argparse.Namespace) -> None:
    """Every system, with and without guidance, eager and compiled."""
    print("| network | guidance | eager, images/s | of two calls | compiled, images/s | of two calls | of eager |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, of in networks().items():
        found = rates(drawings(*of, given), given)

        def ratio(one: tuple[str, str], other: tuple[str, str], found: Any = found) -> str:
            return f"{median(a / b for a, b in zip(found[one], found[other], strict=True)):.2f}x"

        for way in GUIDED:
            columns = [name, way]
            for how in ("eager", "compiled"):
                columns += [shown(found[how, way]), ratio((how, way), (how, "two calls"))]
            print(f"| {' | '.join(columns)} | {ratio(('compiled', way), ('eager', way))} |", flush=True)


def main() -> None:
    """Prints the Markdown that is kept."""
    prepare()
    parser = asked(__doc__, batch=8, repeats=5)
    given = parser.parse_args()
    if given.precision != "fp32":
        parser.error("the demo draws in bfloat16 and the others in float32")
    import torch

    if given.device == "cpu":
        torch.set_num_threads(1)
    print(f"# How fast images are drawn\n\n{machine(given).replace('fp32', 'bf16 and fp32')}")
    print("`python benchmarks/sample.py > benchmarks/sample_2vcpu_202611.md`\n")
    print((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip())
    print("\n## The demo's network, by sampler\n")
    by_sampler(given)
    print(f"\n## Every system, {GUIDED_STEPS} steps, with guidance and compiled\n", flush=True)
    by_system(given)


if __name__ == "__main__":
    main()
