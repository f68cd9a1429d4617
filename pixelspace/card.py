"""The card of a model: what it is, how it was made, what was measured, and how it is used."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelspace.config import to_data
from pixelspace.data.codec import Pixels
from pixelspace.evaluation.report import Report, read_report, table_row
from pixelspace.model_config import ModelConfig
from pixelspace.places import without_places
from pixelspace.training.log import read_metrics
from pixelspace.training.stage import Recipe, Stage


@dataclass(frozen=True)
class Origin:
    """Where a run's weights come from: its recipe, the stage and its folder, after how many images, of how many samples
    in the data set, averaged (`ema`) or not (`raw`)."""

    recipe: Recipe
    stage: Stage
    folder: Path
    images: int
    samples: int
    weights: str

    def told(self) -> dict[str, Any]:
        """As pictures are told it."""
        seen, averaged = self.images, self.weights == "ema"
        return {"recipe": self.recipe.name, "stage": self.stage.name, "images seen": seen, "averaged": averaged}

    def reports(self, sha256: str) -> list[Report]:
        """What was measured of these weights, whose digest is `sha256`: by the stage's own evaluators, and since.

        Raises:
            DataError: a report is damaged.
        """
        at = f"evaluation/*/{self.images:010d}"
        judged = [read_report(path) for path in sorted(self.folder.glob(f"{at}/report.json"))]
        places = (folder / "evaluations" for folder in (self.folder.parent, self.folder))
        since = [read_report(path) for place in places for path in sorted(place.glob("*/report.json"))]
        since = [one for one in since if one.data["images"].get("weights sha256") == sha256]
        return since + judged if self.weights == "ema" else since

    def held_out(self) -> list[float]:
        """The averaged weights' loss of held-out images, if it was measured after the last of these images."""
        rows = read_metrics(self.folder, "validation") if self.weights == "ema" else []
        return [row["loss"] for row in rows if row["images"] == self.images]


@dataclass(frozen=True)
class Facts:
    """What a card says of a model beside its origin. `licence` is an SPDX name such as apache-2.0, or other; `data`
    names what it learnt from in words, and may be empty; `sha256` is of the weights."""

    name: str
    licence: str
    data: str
    config: ModelConfig
    parameters: int
    sha256: str

    @property
    def network(self) -> str:
        return type(self.config.backbone).__name__.removesuffix("Config")

    @property
    def frames(self) -> int:
        return self.config.backbone.tiles**2

    @property
    def num_classes(self) -> int:
        return self.config.backbone.num_classes


def _front(facts: Facts) -> list[str]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    kind = "text-to-image" if facts.config.text else "unconditional-image-generation"
    kind = "text-to-video" if facts.frames > 1 and facts.config.text else kind
    lines = ["---", f"license: {facts.licence.lower()}", "library_name: pixelspace", f"pipeline_tag: {kind}"]
    return [*lines, "tags:", "- diffusion", "- pixelspace", f"- {facts.network.lower()}", "---"]


def _use(facts: Facts) -> list[str]:
    asked = ', text="..."' if facts.config.text else ", label=0" if facts.num_classes else ""
    flag = ' --text "..."' if facts.config.text else " --label 0" if facts.num_classes else ""
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
    config, plan, frames = facts.config, facts.config.sampling, facts.frames
    what = " x ".join(map(str, config.size)) + " px"
    rows = [("network", facts.network), ("parameters", f"{facts.parameters:,}")]
    rows.append(("draws", f"{frames} frames of {what}" if frames > 1 else what))
    if facts.num_classes:
        shown = ", ".join(config.classes[:20]) + (", ..." if len(config.classes) > 20 else "")
        rows.append(("classes", f"{facts.num_classes}" + (f": {shown}" if shown else "")))
    if config.text:
        rows.append(("reads text by", f"{type(config.text).__name__} (not in this repository)"))
    if not isinstance(config.codec, Pixels):
        rows.append(("works on latents of", f"{type(config.codec).__name__} (not in this repository)"))
    sampling = {"solver": plan.solver, "steps": plan.steps, "guidance": plan.guidance}
    rows += [(f"sampling: {name}", value) for name, value in sampling.items()]
    return ["## Model", "", "| | |", "|---|---|", *(table_row(*row) for row in rows)]


def _training(facts: Facts, origin: Origin) -> list[str]:
    recipe, stage = origin.recipe, origin.stage
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


def _measured(facts: Facts, origin: Origin) -> list[str]:
    rows = []
    for report in origin.reports(facts.sha256):
        protocol = f"{report.data['protocol']['name']} [{report.data['fingerprint']}]"
        for row in report.data["numbers"]:
            rows.append((protocol, report.data["images"]["count"], row["name"], row["value"], row["better"]))
    rows += [("objective of the training", "held out", "loss", loss, "lower") for loss in origin.held_out()]
    if not rows:
        return ["## Measured", "", "Nothing yet."]
    heads = ["| protocol | images | metric | value | better |", "|---|---|---|---|---|"]
    return ["## Measured", "", *heads, *(table_row(*row) for row in rows)]


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, without the places of this machine."""
    return without_places(to_data(recipe))


def card(facts: Facts, origin: Origin | None) -> str:
    """The card in Markdown, as the hub shows it. It has no path of this machine in it."""
    lines = [*_front(facts), "", f"# {facts.name.rpartition('/')[2]}", ""]
    lines += [*_use(facts), "", *_model(facts), ""]
    if origin is not None:
        lines += [*_training(facts, origin), "", *_measured(facts, origin), "", "## Recipe", ""]
        lines += ["<details><summary>All settings, as JSON (<code>recipe.json</code>)</summary>", "", "```json"]
        lines += [json.dumps(recipe_data(origin.recipe), indent=1), "```", "", "</details>", ""]
    return "\n".join(lines)
