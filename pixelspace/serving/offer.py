"""What a served model can be asked for, and whether a request asks for that."""

import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pixelspace.config import from_data, nearest, value
from pixelspace.errors import CheckpointError, PixelspaceError, UserError
from pixelspace.model import Model
from pixelspace.sampling.solvers import SOLVERS
from pixelspace.training.checkpoint import candidates

IMAGES, STEPS, GUIDANCE, CHARACTERS, MODELS = 16, 1_000, 100, 2_000, 16
OWN = 4_000
"""The budget of a request, in steps of one image of the model's own size: images x steps x pixels may be so much."""
CHOICES = 64
SEEDS = 2**64


@value
class Wanted:
    """What one drawing is to be; None means as the model has it. `size` is (height, width), `levels` asks for the
    coarser levels of a pyramid too."""

    model: str
    seed: int
    n: int = 1
    size: tuple[int, int] | None = None
    label: int | str | None = None
    text: str | None = None
    negative: str | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance: float | None = None
    levels: bool = False

    def __post_init__(self) -> None:
        for name, found, low, high in (
            ("seed", self.seed, 0, SEEDS - 1),
            ("n", self.n, 1, IMAGES),
            ("steps", self.steps, 1, STEPS),
            ("guidance", self.guidance, 0, GUIDANCE),
        ):
            if found is not None and not low <= found <= high:
                raise UserError(f"{name}: must be from {low:,} to {high:,}, found {found:,}")
        for name, text in (("prompt", self.text), ("negative prompt", self.negative)):
            _check_text(name, text or "")

    def arguments(self) -> dict[str, Any]:
        """As `Model.sample` takes them, but for the levels."""
        return {
            "n": self.n,
            "size": self.size,
            "label": self.label,
            "text": self.text,
            "negative": self.negative,
            "steps": self.steps,
            "sampler": self.sampler,
            "guidance": self.guidance,
            "seed": self.seed,
        }


def _check_text(name: str, text: str) -> None:
    if len(text) > CHARACTERS:
        raise UserError(f"{name}: {len(text):,} characters; at most {CHARACTERS:,} are read, shorten it")
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in "\n\t":
            raise UserError(f"{name}: holds the control character U+{ord(character):04X}; take it out")


def wanted(data: dict[str, Any]) -> Wanted:
    """The request that JSON describes. A seed may also be a text of digits, since browsers round large numbers; where
    none is given, one is drawn.

    Raises:
        UserError: a field that is unknown, of another type or out of range, or no model.
    """
    if "model" not in data:
        raise UserError("model: is missing; say which is to draw")
    for name, found in data.items():
        if isinstance(found, dict):
            raise UserError(f"{name[:100]}: expected a plain value, found an object")
    seed = data.get("seed")
    if seed is None:
        seed = secrets.randbelow(2**32)
    elif isinstance(seed, str):
        if not (seed.isascii() and seed.isdecimal() and len(seed) <= len(str(SEEDS))):
            raise UserError(f"seed: must be a number from 0 to {SEEDS - 1:,}, found {seed[:30]!r}")
        seed = int(seed)
    return from_data({**data, "seed": seed, "type": "Wanted"}, {"Wanted": Wanted})


def _thinned(sides: list[int], own: int) -> list[int]:
    """At most `CHOICES` of them, the model's own among them."""
    multiple = 1
    while len(fit := [side for side in sides if side % multiple == 0 or side == own]) > CHOICES:
        multiple *= 2
    return fit


@dataclass(frozen=True)
class Offered:
    """One model by the name that users see."""

    name: str
    model: Model

    @cached_property
    def missing(self) -> tuple[str, str]:
        """What is not at hand to draw with it: as users are told, without a path of this machine, and as the terminal
        is; "" for nothing."""
        try:
            if self.model.config.text is not None:
                _ = self.model.reader
        except PixelspaceError as error:
            return "this model's text encoder is not at hand; the server needs --encoder", str(error)
        try:
            self.model.config.codec.identity()
        except PixelspaceError as error:
            return "this model's VAE is not at hand; the server needs --vae", str(error)
        return "", ""

    def _fits(self, height: int, width: int) -> bool:
        config = self.model.config
        try:
            config.backbone.check_size(*(config.backbone.tiles * s for s in config.codec.latent_size((height, width))))
        except UserError:
            return False
        return True

    @cached_property
    def sides(self) -> tuple[list[int], list[int]]:
        """Heights and widths that the network takes, from half to twice what it was trained at."""
        height, width = self.model.config.size
        heights = [side for side in range(-(-height // 2), 2 * height + 1) if self._fits(side, width)]
        widths = [side for side in range(-(-width // 2), 2 * width + 1) if self._fits(height, side)]
        return _thinned(heights, height), _thinned(widths, width)

    def described(self) -> dict[str, Any]:
        """As the page is told."""
        config = self.model.config
        return {
            "name": self.name,
            "problem": self.missing[0],
            "size": config.size,
            "sides": self.sides,
            "frames": config.backbone.tiles**2,
            "levels": len(config.backbone.pyramid),
            "factors": config.backbone.pyramid,
            "classes": config.classes,
            "num_classes": config.backbone.num_classes,
            "text": config.text is not None,
            "steps": config.sampling.steps,
            "sampler": config.sampling.solver,
            "guided": self.model.guided,
            "guidance": config.sampling.guidance,
        }

    def check(self, asked: Wanted) -> None:
        """Refuses what would not be drawn; it may be called while something else is, and reads no text.

        Raises:
            UserError: what the model does not take, or more work than one request may be.
        """
        if self.missing[0]:
            raise UserError(self.missing[0])
        config = self.model.config
        own, size = config.size, asked.size or config.size
        for name, found, trained in zip(("height", "width"), size, own, strict=True):
            if not trained / 2 <= found <= 2 * trained:
                raise UserError(
                    f"{name} {found}: this model was trained at {trained}; give {-(-trained // 2)} to {2 * trained}"
                )
        steps = asked.steps if asked.steps is not None else config.sampling.steps
        work = asked.n * steps * size[0] * size[1] / (own[0] * own[1])
        if work > OWN:
            raise UserError(
                f"{asked.n} images of {size[0]}x{size[1]} in {steps:,} steps are {work / OWN:.2g} times what one "
                f"request may ask for; take fewer images or steps, or a smaller size"
            )
        drawn: Callable[..., None] = lambda rows, levels: None  # noqa: E731
        # It refuses all that drawing it would.
        self.model.sample(**asked.arguments(), every_level=asked.levels, only=[], each=drawn, progress=False)

    def notes(self, asked: Wanted) -> list[str]:
        """What a user should know of how it is drawn. It uses the tokenizer, which two threads must not do at once."""
        encoder, notes = self.model.config.text, []
        for name, text in (("prompt", asked.text), ("negative prompt", asked.negative)):
            if text is not None and encoder is not None:
                (length,) = self.model.reader.lengths([text])
                if length > encoder.length:
                    notes.append(f"the {name} has {length} tokens, and the model reads the first {encoder.length}")
        return notes


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoints of a stage, or of the last stage of a run that has any, the latest step first.

    Raises:
        CheckpointError: there are none.
    """
    stages = [path, *sorted(path.iterdir())] if path.is_dir() else []
    found = [steps for stage in stages if stage.is_dir() and (steps := candidates(stage / "checkpoints"))]
    if not found:
        raise CheckpointError(f"{path}: holds no checkpoints; give a run or a stage, or leave out --checkpoints")
    return found[-1]


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same model is named twice; name each once")


class Offer:
    """The models that are served, by name."""

    def __init__(self, models: dict[str, Model]):
        self.models = {name: Offered(name, model) for name, model in models.items()}

    @classmethod
    def opened(cls, paths: list[Path], open_one: Callable[[Path], Model]) -> "Offer":
        """Those at `paths`, each named by the end of its path.

        Raises:
            UserError: none, too many, or one twice.
        """
        if not 1 <= len(paths) <= MODELS:
            raise UserError(f"give 1 to {MODELS} models; found {len(paths)}")
        return cls({name: open_one(path) for name, path in zip(_names(paths), paths, strict=True)})

    def of(self, asked: Wanted) -> Offered:
        """The model that is asked for.

        Raises:
            UserError: no such model.
        """
        if asked.model not in self.models:
            raise UserError(f"model: no such model {asked.model[:100]!r}; {nearest(asked.model[:100], self.models)}")
        return self.models[asked.model]

    def described(self) -> dict[str, Any]:
        """As the page is told."""
        limits = {"n": IMAGES, "steps": STEPS, "guidance": GUIDANCE, "characters": CHARACTERS}
        return {
            "models": [one.described() for one in self.models.values()],
            "samplers": sorted(SOLVERS),
            "limits": limits,
        }
