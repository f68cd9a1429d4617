"""A model in hand: sample it, ask it, save it."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pixelspace import hub, store
from pixelspace.card import Facts, Origin, card, recipe_data
from pixelspace.config import nearest, to_data
from pixelspace.data.pictures import pictures
from pixelspace.dist import pick_device
from pixelspace.errors import UserError
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.model_config import ModelConfig
from pixelspace.nn.weights import digest, load_weights
from pixelspace.noise.pyramid import Pyramid
from pixelspace.places import without_places
from pixelspace.sampling.generate import Sampling, generate
from pixelspace.sampling.pyramid import Packing
from pixelspace.sampling.solvers import SOLVERS
from pixelspace.sampling.step import Step
from pixelspace.text.encoder import Reader
from pixelspace.training.words import asked, check_widths
from pixelspace.types import Cond

KIND = "model"
MAX_IMAGES = 1_000_000


class Forming(NamedTuple):
    """Images as they are being drawn: which of the n they are, how many of their steps are done and how many there
    are, the level sigma of the last one, and what they look like by the estimate at it, as `sample` returns them."""

    images: list[int]
    done: int
    steps: int
    sigma: float
    levels: Callable[[], list[Tensor]]


Label = int | str | Sequence[int | str] | Tensor


class Model:
    """A trained network with all that is needed to use it.

    `backbone(x, c_noise, cond)` is the raw network on scaled input; `config` the rest. `nothing` is what "" means to
    the encoder of a model that reads text; `origin` the run it was loaded from, where it was one.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        device: torch.device | str = "auto",
        nothing: Cond | None = None,
        origin: Origin | None = None,
    ):
        self.config = config
        self.nothing = nothing or {}
        self.origin = origin
        self._reader: Reader | None = None
        self.backbone = config.backbone.build().eval().requires_grad_(False)
        load_weights(self.backbone, weights)
        self.to(device)

    @classmethod
    def around(cls, config: ModelConfig, network: nn.Module, nothing: Cond | None = None) -> "Model":
        """The model of a network that was built by `config`, with the weights it has and where it is."""
        model = cls.__new__(cls)
        model.config, model.nothing, model.origin, model._reader = config, nothing or {}, None, None
        model.backbone = network.eval().requires_grad_(False)
        return model

    def to(self, device: torch.device | str) -> "Model":
        """Moves the network to `device` (`auto` picks one)."""
        self.backbone.to(pick_device(str(device)))
        self._reader = None
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.backbone.parameters()).device

    @cached_property
    def sha256(self) -> str:
        """Of the weights, by name."""
        return digest(self.backbone.state_dict())

    def use_vae(self, path: Path | str) -> "Model":
        """Takes the VAE of a model of latents from `path` from now on.

        Raises:
            UserError: a model of pixels.
        """
        codec = self.config.codec
        if not isinstance(codec, KLVAE):
            raise UserError("vae: this model draws pixels without a VAE; leave it out")
        self.config = replace(self.config, codec=replace(codec, vae=str(path)))
        return self

    def use_text(self, path: Path | str) -> "Model":
        """Takes the text encoder from `path` from now on; it must be the one trained with.

        Raises:
            UserError: a model that reads no text, or whose encoder comes with a package.
        """
        if self.config.text is None:
            raise UserError("text: this model reads no text; leave it out")
        self.config, self._reader = replace(self.config, text=self.config.text.at(str(path))), None
        return self

    @property
    def reader(self) -> Reader:
        """The text encoder with its weights, opened when it is first needed. One that does not fill up pads prompts to
        the longest of those read together.

        Raises:
            UserError: this model reads no text, or the encoder is not the one trained with.
        """
        config = self.config
        if config.text is None:
            raise UserError("text: this model reads no text; leave it out")
        if self._reader is None:
            reader = config.text.open(self.device)
            check_widths(reader, config.backbone)
            if config.text_identity and reader.identity != config.text_identity:
                raise UserError(
                    f"text: this model was trained with {config.text_identity}, and the encoder is now "
                    f"{reader.identity}; give the one it was trained with"
                )
            self._reader = reader
        return self._reader

    def _nothing(self) -> Cond:
        return {} if self.config.text is None else self.nothing or self.reader([""]).cond()

    def _complete(self, cond: Cond, n: int) -> Cond:
        """With nothing in place of what is missing."""
        unlabelled = torch.full((n,), -1, device=self.device)
        words = {} if "text" in cond else self._nothing()  # an encoder need not be at hand where it has read already
        return {**asked(unlabelled, self.config.size, {}, words)[1], **cond}

    def _forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.backbone(x, c_noise, cond)

    def _packing(self, levels: Sequence[Tensor]) -> Packing:
        factors, shapes = self.config.backbone.pyramid, [tuple(level.shape) for level in levels]
        first = shapes[0] if shapes else ()
        if len(first) != 4 or shapes != [(*first[:2], first[2] // f, first[3] // f) for f in factors]:
            smaller = f"a list of {len(factors)} levels (B, C, H, W), the finest first, smaller by {factors}"
            raise UserError(f"x: expected {smaller if len(factors) > 1 else '(B, C, H, W)'}; found {shapes}")
        return Packing(self.config.pyramid or Pyramid((1,)), first[1:])

    @overload
    def denoised(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor: ...

    @overload
    def denoised(self, x: Sequence[Tensor], sigma: Tensor | float, cond: Cond | None = None) -> list[Tensor]: ...

    @torch.no_grad()
    def denoised(
        self, x: Tensor | Sequence[Tensor], sigma: Tensor | float, cond: Cond | None = None
    ) -> Tensor | list[Tensor]:
        """The estimate of x0 in model space, for x (B, C, H, W) = x0 + sigma noise; sigma () or (B,).

        A model of several levels takes and gives a list of them, the finest first: x = x0 + k sigma noise, with x0 the
        image averaged (`Pyramid.pool`) and k the level's (`Pyramid.k`). A clip is one image, its tiles the frames.

        Keys of `cond` that the model does not take are ignored; a missing label or text means none.

        Raises:
            UserError: another number of levels, or shapes that do not fit each other.
        """
        levels = [x] if isinstance(x, Tensor) else list(x)
        packing = self._packing(levels)
        denoise = packing.denoiser(self._forward, self.config.process, self._complete(cond or {}, len(levels[0])))
        y = packing.pack(levels)
        found = packing.unpack(denoise(y, torch.as_tensor(sigma, dtype=y.dtype, device=y.device)))
        return found[0] if isinstance(x, Tensor) else found

    def _class_index(self, label: int | str) -> int:
        classes, n = self.config.classes, self.config.backbone.num_classes
        if isinstance(label, str):
            if label not in classes:
                raise UserError(f"label: no class {label!r}; {nearest(label, classes)}")
            return classes.index(label)
        if isinstance(label, bool) or not -1 <= label < n:
            raise UserError(f"label {label} is out of range: this model has classes 0 to {n - 1} (-1: none)")
        return label

    def _labels(self, label: Label | None, n: int) -> Tensor:
        classes = self.config.backbone.num_classes
        if label is None:
            return torch.full((n,), -1)
        if not classes:
            raise UserError("label: this model has no classes; leave it out")
        if isinstance(label, Tensor) and label.is_floating_point():
            if label.shape != (n, classes):
                raise UserError(f"label: expected rows of shape {(n, classes)}, found {tuple(label.shape)}")
            return label
        labels = label.tolist() if isinstance(label, Tensor) else label
        if isinstance(labels, int | str):
            labels = [labels] * n
        if len(labels) != n:
            raise UserError(f"label: expected one label or {n}, found {len(labels)}")
        return torch.tensor([self._class_index(one) for one in labels])

    def _prompts(self, name: str, text: str | Sequence[str], n: int) -> list[str]:
        prompts = [text] if isinstance(text, str) else list(text)
        if self.config.text is None:
            raise UserError(f"{name}: this model reads no text; leave it out")
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt.strip():
                raise UserError(f"{name}: prompt {i + 1} of {len(prompts)} is blank: {prompt!r}; give some words")
        if not prompts or n % len(prompts):
            raise UserError(f"{name}: {len(prompts)} prompts for {n} images; n must be a multiple of their number")
        return prompts

    @property
    def guided(self) -> bool:
        """Whether there is something to guide it by: classes, or text."""
        return bool(self.config.backbone.num_classes or self.config.text)

    def plan(self, steps: int | None, sampler: str | None, guidance: float | None) -> Sampling:
        """How images are made with these settings in place of the model's own; None leaves one as it is.

        Raises:
            UserError: one that cannot be meant.
        """
        plan = self.config.sampling
        if sampler is not None and sampler not in SOLVERS:
            raise UserError(f"sampler: no solver {sampler!r}; {nearest(sampler, SOLVERS)}")
        if sampler is not None and sampler != plan.solver:
            plan = replace(plan, solver=sampler, settings=())
        if steps is not None:
            if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 100_000:
                raise UserError(f"steps must be from 1 to 100,000, found {steps!r}")
            plan = replace(plan, steps=steps)
        if guidance is not None:
            if not 0 <= guidance < float("inf"):
                raise UserError(f"guidance must be a number from 0 on, found {guidance}")
            if guidance != 1 and not self.guided:
                raise UserError("guidance: this model takes neither class nor prompt to be guided by; leave it out")
            plan = replace(plan, guidance=float(guidance))
        return plan

    def _meanings(self, prompts: list[str] | None, rows: Sequence[int]) -> Cond:
        """What the prompts of images `rows` mean, (n, ...); without prompts, what "" does, (1, ...)."""
        if prompts is None:
            return self._nothing()
        return self.reader([prompts[i % len(prompts)] for i in rows]).cond()

    def _batches(self, prompts: Sequence[list[str]], images: Sequence[int], batch: int) -> list[list[int]]:
        """Which of `images` are drawn together: where an encoder does not fill up, those whose longest prompts have as
        many tokens, for an image must not depend on what is padded beside it, which some networks attend to."""
        lengths, encoder = dict[str, int](), self.config.text
        if prompts and encoder and not encoder.fill:
            each = list({some[i % len(some)] for some in prompts for i in images})
            lengths = {
                one: min(length, encoder.length) for one, length in zip(each, self.reader.lengths(each), strict=True)
            }
        groups = defaultdict[int, list[int]](list)
        for i in images:
            groups[max((lengths.get(some[i % len(some)], 0) for some in prompts), default=0)].append(i)
        return [some[at : at + batch] for some in groups.values() for at in range(0, len(some), batch)]

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        label: Label | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        progress: bool = True,
        batch: int = 16,
        exact: bool = False,
        first: int = 0,
        only: Sequence[int] | None = None,
        truncate: bool | None = None,
        every_level: bool = False,
        each: Callable[[list[int], list[Tensor]], None] | None = None,
        watch: Callable[[Forming], None] | None = None,
    ) -> Any:
        """torch.uint8 (n, H, W, C) on the CPU, of clips (n, T, H, W, C). None means as the recipe says; no label means
        no class.

        With `every_level` a list of them, of all levels that the model draws, the finest first: one of a plain model.
        The coarsest level of clips has one frame.

        `size` is a side or (height, width), of clips that of a frame; `label` a class number or name, one for all or
        one an image, or float rows (n, classes). Image i is of prompt i modulo the number of prompts in `text`, and
        guided away from `negative` likewise; without them, from what "" means. n is by default as many as there are
        prompts, or else 1.

        Images `first` to first + n - 1 of the seed are drawn; none depends on n or on `batch` beyond rounding, and with
        `exact` not at all. `only` lists those of these n, counted from 0, that are to be drawn. `truncate` cuts pixels
        off to 8 bits or rounds them; see `Codec.decode`.

        With `each` nothing is kept or returned: it is called with every batch as soon as that is drawn, which of the n
        it has and their levels. `watch` is told of every step; what it raises ends the drawing at that step.

        Raises:
            UserError: an argument that the model has no use for.
        """
        if n is None:
            n = 1 if text is None or isinstance(text, str) else max(len(text), 1)
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_IMAGES:
            raise UserError(f"n must be from 1 to {MAX_IMAGES:,}, found {n!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise UserError(f"seed must be from 0 to 2^64 - 1, found {seed!r}")
        if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < 2**62:
            raise UserError(f"first must be from 0 on, found {first!r}")
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise UserError(f"batch must be a positive number, found {batch!r}")
        wanted = range(n) if only is None else only
        if not wanted and each is None:
            raise UserError("only: lists no image; leave it out to draw all")
        if wanted and not 0 <= min(wanted) <= max(wanted) < n:
            raise UserError(f"only: lists images {min(wanted)} to {max(wanted)}; there are 0 to {n - 1}")
        config = self.config
        height, width = config.size if size is None else (size, size) if isinstance(size, int) else size
        latent_size = config.codec.latent_size((height, width))
        config.codec.identity()  # reads a VAE now, not after the first batch
        shape = (config.backbone.channels, *(config.backbone.tiles * side for side in latent_size))
        config.backbone.check_size(*shape[1:])
        packing = Packing(config.pyramid, shape) if config.pyramid and every_level else None
        plan = self.plan(steps, sampler, guidance)
        labels = self._labels(label, n).to(self.device)
        numbers = torch.arange(first, first + n, device=self.device)
        words = None if text is None else self._prompts("text", text, n)
        against = None if negative is None else self._prompts("negative", negative, n)
        if against is not None and plan.guidance == 1:
            raise UserError("negative: without guidance nothing is guided away from; set guidance to more than 1")
        batches, drawn = self._batches([prompts for prompts in (words, against) if prompts], wanted, batch), []
        with tqdm(
            total=len(batches) * plan.steps, desc="sampling", unit="step", disable=not progress, leave=False
        ) as bar:

            def looked_at(x0: Tensor) -> list[Tensor]:
                return pictures(config.codec, packing.unpack(x0) if packing else [x0], config.backbone.tiles, truncate)

            for rows in batches:

                def advance(step: Step, rows: list[int] = rows) -> None:
                    bar.update(1)
                    if watch is not None:
                        sigma, estimate = float(torch.as_tensor(step.sigma).max()), step.denoised
                        watch(Forming(rows, step.index + 1, plan.steps, sigma, lambda: looked_at(estimate)))

                some, none = (self._meanings(prompts, rows) for prompts in (words, against))
                cond, null = asked(labels[rows], (height, width), some, none)
                (x0,) = generate(
                    self._forward,
                    config.process,
                    plan,
                    images=numbers[rows],
                    shape=shape,
                    cond=cond,
                    null=null,
                    seed=seed,
                    batch=batch,
                    exact=exact,
                    callback=advance,
                    pyramid=config.pyramid,
                    every_level=every_level,
                )
                found = looked_at(x0)
                drawn.append(found) if each is None else each(rows, found)
        if each is not None:
            return None
        place = {image: at for at, image in enumerate(wanted)}
        in_order = torch.tensor([place[i] for rows in batches for i in rows]).argsort()
        found = [torch.cat(level)[in_order] for level in zip(*drawn, strict=True)]
        return found if every_level else found[0]

    def settings(
        self,
        image: int,
        name: str,
        *,
        n: int,
        seed: int,
        size: int | tuple[int, int] | None = None,
        label: int | str | Sequence[int | str] | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
    ) -> dict[str, Any]:
        """All that decides image number `image` of those that `sample` draws by these arguments, as plain data for its
        file (`file_of` in data/pictures.py): with the version of this library, what the model is called here (`name`),
        the digest of its weights, and of a run recipe, stage, images seen, and whether weights are averaged."""

        def one(given: Any) -> Any:
            return given[image % len(given)] if isinstance(given, Sequence) and not isinstance(given, str) else given

        plan, origin, side = self.plan(steps, sampler, guidance), self.origin, size or self.config.size
        return {
            "pixelspace": version("pixelspace"),
            "model": name,
            "weights": self.sha256,
            **({} if origin is None else origin.told()),
            "seed": seed,
            "image": image,
            "of": n,
            "size": [side, side] if isinstance(side, int) else list(side),
            "label": one(label),
            "text": one(text),
            "negative": one(negative),
            "steps": plan.steps,
            "sampler": plan.solver,
            "guidance": plan.guidance,
        }

    def save(self, folder: Path | str) -> Path:
        """Writes safetensors and JSON into `folder` (new, empty, or an earlier model), all or nothing."""
        parts = {"model": self.backbone.state_dict(), **({"nothing": self.nothing} if self.nothing else {})}
        return store.publish(Path(folder), parts, to_data(self.config), kind=KIND, replace=True)

    def card(self, name: str, licence: str, data: str = "") -> str:
        """The card of this model as the repository `name`, in Markdown: what it is, how it is used, and as far as its
        run says that, how it was made and what was measured of these very weights. `licence` is as the hub has it,
        such as apache-2.0, or other; `data` names in words what it learnt from."""
        parameters = sum(parameter.numel() for parameter in self.backbone.parameters())
        facts = Facts(hub.check_name(name), hub.check_licence(licence), data, self.config, parameters, self.sha256)
        return card(facts, self.origin)

    def push_to_hub(
        self, name: str, *, licence: str, data: str = "", private: bool = False, revision: str | None = None
    ) -> str:
        """Puts the model with its `card` and recipe into the repository `name` (user/name) on the Hugging Face Hub, as
        one commit onto the branch `revision`, and returns the address that `load` takes. The login of `hf auth login`
        or HF_TOKEN is used. No path of this machine is told; a VAE or text encoder of the user's stays here.

        Raises:
            UserError: no such name or licence can be.
            ResourceError: no connection, no right to it, or no package `huggingface_hub`.
        """
        text = self.card(name, licence, data)
        with tempfile.TemporaryDirectory(prefix="pixelspace-") as folder:
            kept = Path(folder) / "model"
            parts = {"model": self.backbone.state_dict(), **({"nothing": self.nothing} if self.nothing else {})}
            store.publish(kept, parts, without_places(to_data(self.config)), kind=KIND)
            (kept / "README.md").write_text(text, encoding="utf-8")
            if self.origin is not None:
                recipe = json.dumps(recipe_data(self.origin.recipe), indent=1) + "\n"
                (kept / "recipe.json").write_text(recipe, encoding="utf-8")
            return hub.upload(kept, name, private=private, revision=revision)
