"""The command that asks why samples look as they do: diagnose."""

import json as json_format
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from pixelspace.cli.given import cache_folder


def diagnose(
    target: Positional[Path],
    *,
    data: Path | None = None,
    prompts: Path | None = None,
    n: Annotated[int, arg(aliases=("-n",))] = 64,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 16,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Say why samples are grey, noisy or gridded: draw some, compare them with real images, ask the network about those
    at eight noise levels, and count what in it is dead.

    Args:
        target: A run, stage, checkpoint or model folder, a k-diffusion weights file or hf://user/name; a run tells
            most.
        data: Real images to compare with, a folder or an archive; a run has its own.
        prompts: What to draw, one a line (.txt, .json, .jsonl, .csv); by default the captions of a run's images.
        n: How many images to draw, and to compare with.
        steps: Solver steps; as the recipe says by default.
        seed: Of the images and of the noise.
        batch: Images computed at once.
        device: cpu, cuda, mps or auto.
        json: Print all numbers as JSON instead.
    """
    from dataclasses import asdict

    from pixelspace.diagnosis import diagnose as instruments
    from pixelspace.diagnosis.findings import findings
    from pixelspace.diagnosis.telling import told
    from pixelspace.evaluation.prompts import read_prompts

    found = instruments.diagnose(
        target,
        data=data,
        prompts=None if prompts is None else read_prompts(prompts),
        n=n,
        steps=steps,
        seed=seed,
        batch=batch,
        device=device,
        cache=cache_folder(),
    )
    if json:
        print(json_format.dumps({**asdict(found), "findings": [asdict(one) for one in findings(found)]}, indent=1))
    else:
        print(told(found))
