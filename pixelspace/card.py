"""The card of a model: what it is, how it was made, what was measured, and how it is used."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pixelspace.config import to_data
from pixelspace.evaluation.report import Report, table_row
from pixelspace.places import without_places
from pixelspace.training.stage import Recipe


@dataclass(frozen=True)
class Origin:
    """Where a run's weights come from: its recipe, the stage, after how many images, of how many samples in the data
    set, averaged (`ema`) or not (`raw`), and what was measured of it since."""

    recipe: Recipe
    stage: str
    images: int
    samples: int
    weights: str
    reports: Sequence[Report] = ()


@dataclass(frozen=True)
class Facts:
    """What a card says of a model beside its origin. `licence` is an SPDX name such as apache-2.0, or other; `data`
    names what it learnt from in words, and may be empty."""

    name: str
    licence: str
    parameters: int
    size: tuple[int, int]
    network: str
    classes: Sequence[str] = ()
    num_classes: int = 0
    reads_text: str = ""
    latents: str = ""
    frames: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""


def _front(facts: Facts) -> list[str]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    kind = "text-to-image" if facts.reads_text else "unconditional-image-generation"
    kind = "text-to-video" if facts.frames > 1 and facts.reads_text else kind
    lines = ["---", f"license: {facts.licence.lower()}", "library_name: pixelspace", f"pipeline_tag: {kind}"]
    return [*lines, "tags:", "- diffusion", "- pixelspace", f"- {facts.network.lower()}", "---"]


def _use(facts: Facts) -> list[str]:
    asked = ', text="..."' if facts.reads_text else ", label=0" if facts.num_classes else ""
    flag = ' --text "..."' if facts.reads_text else " --label 0" if facts.num_classes else ""
    return [
        "## Use",
        "",
        "```python",
        "import pixelspace as ps",
        "",
        f'model = ps.load("hf://{facts.name}")',
        f"images = model.sample(4, seed=1{asked})  # torch.uint8 (4, H, W, 3)",
        "```",
        "",
        f"    pixelspace sample hf://{facts.name} -n 4 --seed 1{flag} --out samples",
        "",
        "Needs `pip install 'pixelspace[hub]'`. The files are safetensors and JSON: no code in them is run.",
    ]


def _model(facts: Facts) -> list[str]:
    height, width = facts.size
    what = f"{facts.frames} frames of {height} x {width} px" if facts.frames > 1 else f"{height} x {width} px"
    rows = [("network", facts.network), ("parameters", f"{facts.parameters:,}"), ("draws", what)]
    if facts.num_classes:
        shown = ", ".join(facts.classes[:20]) + (", ..." if len(facts.classes) > 20 else "")
        rows.append(("classes", f"{facts.num_classes}" + (f": {shown}" if shown else "")))
    if facts.reads_text:
        rows.append(("reads text by", f"{facts.reads_text} (not in this repository)"))
    if facts.latents:
        rows.append(("works on latents of", f"{facts.latents} (not in this repository)"))
    rows += [(f"sampling: {name}", value) for name, value in facts.sampling.items()]
    return ["## Model", "", "| | |", "|---|---|", *(table_row(*row) for row in rows)]


def _training(facts: Facts, origin: Origin) -> list[str]:
    recipe, (stage,) = origin.recipe, [one for one in origin.recipe.stages if one.name == origin.stage]
    names = [one.name for one in recipe.stages]
    what = "averaged" if origin.weights == "ema" else "raw"
    rows = [
        ("recipe", f"{recipe.name}, stage {stage.name} ({names.index(stage.name) + 1} of {len(names)})"),
        ("images seen in this stage", f"{origin.images:,} of {stage.images:,}"),
        ("batch", stage.batch),
        ("weights", what),
        ("data", f"{origin.samples:,} samples: {facts.data or type(stage.data.source).__name__}"),
        ("seed", recipe.seed),
    ]
    return ["## Training", "", "| | |", "|---|---|", *(table_row(*row) for row in rows)]


def _measured(reports: Sequence[Report]) -> list[str]:
    lines = ["## Measured", ""]
    if not reports:
        return [*lines, "Nothing yet."]
    lines += ["| protocol | images | metric | value | better |", "|---|---|---|---|---|"]
    for report in reports:
        protocol = f"{report.data['protocol']['name']} [{report.data['fingerprint']}]"
        for row in report.data["numbers"]:
            lines.append(table_row(protocol, report.data["images"]["count"], row["name"], row["value"], row["better"]))
    return lines


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, without the places of this machine."""
    return without_places(to_data(recipe))


def card(facts: Facts, origin: Origin | None) -> str:
    """The card in Markdown, as the hub shows it. It has no path of this machine in it."""
    lines = [*_front(facts), "", f"# {facts.name.rpartition('/')[2]}", ""]
    lines += [*_use(facts), "", *_model(facts), ""]
    if origin is not None:
        lines += [*_training(facts, origin), "", *_measured(origin.reports), "", "## Recipe", ""]
        lines += ["<details><summary>All settings, as JSON (<code>recipe.json</code>)</summary>", "", "```json"]
        lines += [json.dumps(recipe_data(origin.recipe), indent=1), "```", "", "</details>", ""]
    return "\n".join(lines)
