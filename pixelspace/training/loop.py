"""The one loop: a recipe's stages in order, a stage's steps, and everything a step does.

A stage folder holds `checkpoints/`, `metrics.jsonl`, `loss.png` and `samples/`. The state of a run is its weights,
their average, the optimiser's moments and the step; all else is a function of these and the recipe, so that a run goes
on from any checkpoint to the same bits.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import pixelspace
from pixelspace.config import to_data
from pixelspace.data.dataset import Dataset
from pixelspace.data.loader import Positions, Raw, batches, divide, ordered, read, to_model_space
from pixelspace.errors import DataError, NumericalError, Stopped, UserError
from pixelspace.growth.freeze import freeze
from pixelspace.nn.weights import digest, load_weights
from pixelspace.random import Rng
from pixelspace.text.encoder import Reader
from pixelspace.training import checkpoint, judging
from pixelspace.training.ema import Average
from pixelspace.training.inherit import Given, matchable, start_from, take, write_report
from pixelspace.training.log import Metrics, OctileMeans, open_trackers, plot_loss
from pixelspace.training.optim import set_rate
from pixelspace.training.preview import autocast, drawn, evaluating, held_out_loss, sample_images, save_sheets
from pixelspace.training.seam import match_seam, samples
from pixelspace.training.stage import Recipe, Stage
from pixelspace.training.standing import check_start, is_done, stage_folder
from pixelspace.training.state import State, restore, tensors_of
from pixelspace.training.stopping import asked_to_stop
from pixelspace.training.words import nothing, open_reader, with_text
from pixelspace.types import Cond, Evaluator, Held, Look

BAD_WINDOW = 100  # steps over which `Stage.bad_steps` counts
UNREADABLE_WINDOW, UNREADABLE_MAX = 10_000, 10  # samples


@dataclass(frozen=True)
class StepReport:
    """Of one step: per-sample losses and sigmas, their mean, the gradient's norm before clipping, and if it counted."""

    losses: Tensor
    sigmas: Tensor
    loss: float
    grad_norm: float
    finite: bool


def train_step(
    state: State, forward: Callable[..., Tensor], stage: Stage, raw: Raw, rng: Rng, reader: Reader | None = None
) -> StepReport:
    """Draw, forward, backward, clip, step, average; a loss or gradient that is not finite changes only the step."""
    device = next(state.network.parameters()).device
    seen, micro = state.step * stage.batch, stage.micro or stage.batch
    losses, sigmas = [], []
    for start in range(0, stage.batch, micro):
        part = raw.part(start, start + micro)
        batch = with_text(to_model_space(part, stage.data, stage.codec, rng, device), part.texts, reader)
        draw = stage.objective.draw(batch, stage.batch, seen / stage.images, rng)
        torch.manual_seed(rng.key("dropout", state.step, start))
        loss = stage.objective.loss(forward, batch, draw)
        (loss.sum() / stage.batch).backward()
        losses.append(loss.detach())
        sigmas.append(draw.sigma)

    each = torch.cat(losses)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), stage.optimizer.clip or math.inf)
    loss, grad_norm = torch.stack([each.mean(), norm]).tolist()
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if finite:
        rate = stage.optimizer.lr * stage.schedule.factor(seen, stage.images, stage.batch)
        set_rate(state.optimizer, rate, seen, stage.batch)
        state.optimizer.step()
        state.average.update(state.network, stage.ema)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return StepReport(each, torch.cat(sigmas), loss, grad_norm, finite)


def _check_labels(stage: Stage, dataset: Dataset) -> None:
    found, room = len(dataset.classes), stage.backbone.num_classes
    if room and not found:
        raise UserError(
            f"stage {stage.name!r}: the network has {room} classes but the data has none; set num_classes=0"
        )
    if room and found > room:
        raise UserError(f"stage {stage.name!r}: the data has {found} classes, the network room for {room}")


def _check_buckets(stage: Stage, dataset: Dataset) -> None:
    for height, width in stage.data.bucket_sizes(stage.size):
        try:
            stage.backbone.check_size(*stage.shape_of((height, width))[1:])
            dataset.check((height, width), stage.data.flip, stage.codec)
        except UserError as error:
            raise UserError(f"stage {stage.name!r}: data.buckets gives {height}x{width}: {error}") from error


def _compiled(network: nn.Module, stage: Stage) -> Callable[..., Tensor]:
    """The network, compiled for each size of a batch: beyond its limit torch would run it as it stands, and slowly."""
    sizes = len(stage.data.bucket_sizes(stage.size))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, sizes + 1)
    return torch.compile(network)


class StageRun:
    """A stage on its way: what its steps share."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        *,
        recipe: Recipe,
        device: torch.device,
        cache: Path | None,
        say: Callable[[str], None],
        given: Given | None,
        ancestor: Path | None,
        judges: Path | None = None,
    ):
        self.stage, self.folder, self.recipe, self.device, self.say = stage, folder, recipe, device, say
        self.rng = Rng(Rng(recipe.seed).key("stage", stage.name))
        self.weights_folder = judges or (cache or folder) / "weights"
        self.told = set[str]()  # names of unreadable samples
        stage.codec.identity()  # reads a VAE now, not after the images
        self.dataset = stage.data.source.open(cache)
        _check_labels(stage, self.dataset)
        self.dataset.check(stage.size, stage.data.flip, stage.codec)
        _check_buckets(stage, self.dataset)
        self.train_ids, self.held_ids = divide(self.dataset, stage.data, recipe.split, say)
        self.order = ordered(self.dataset, stage.data, self.train_ids, self.rng, stage.size, stage.batch, say)
        self.reader = open_reader(stage, self.dataset, self.train_ids, self.held_ids, device)
        self.nothing = nothing(self.reader)
        for evaluator in stage.evaluators:  # reads its networks now, not after the images
            evaluator.check(self.dataset.holds_images, self._holds_captions, self.weights_folder)
        torch.manual_seed(self.rng.key("init"))
        network = stage.backbone.build().to(device)
        network.checkpointing = stage.checkpointing  # type: ignore[assignment]
        freeze(network, stage.freeze)
        self.state = State(network, Average(network), stage.optimizer.build(network))
        self._resume_or_start(given, ancestor)
        compiled = _compiled(network, stage) if stage.compile else network

        def forward(x: Tensor, c_noise: Tensor, cond: Cond, **keep: Tensor) -> Tensor:
            with autocast(stage, device):
                return compiled(x, c_noise, cond, **keep)

        self.forward = forward

    def _resume_or_start(self, given: Given | None, ancestor: Path | None) -> None:
        resumed = checkpoint.resume(self.folder / "checkpoints")
        if resumed is not None:
            saved = resumed.contents.state
            for line in resumed.refused:
                self.say(f"refused: {line}")
            if saved["fingerprint"] != self.dataset.fingerprint:
                raise UserError(
                    f"the data has changed since {resumed.path.name}: {saved['samples']} samples then, "
                    f"{len(self.dataset)} now; bring it back, or start anew with another --out"
                )
            if saved.get("codec", "") != self.stage.codec.identity():
                raise UserError(
                    f"stage {self.stage.name!r}: the codec's weights have changed since {resumed.path.name}"
                )
            if (found := self.reader.identity if self.reader else "") != saved.get("text", ""):
                raise UserError(
                    f"stage {self.stage.name!r}: the text encoder has changed since {resumed.path.name}: "
                    f"{saved.get('text')} then, {found} now"
                )
            if saved["threads"] != torch.get_num_threads():
                self.say(f"using {saved['threads']} threads, as before: another count gives other bits")
                torch.set_num_threads(saved["threads"])
            if given is not None:
                self.say("--from is not used: the stage goes on from its own checkpoint")
            restore(self.state, resumed.contents.parts, saved)
            self.say(f"resuming {self.stage.name} at {self.images:,} images ({resumed.path.name})")
        elif given is not None:
            report = take(self.state.network, self.stage, given)
            self.state.average = Average(self.state.network)
            if (init := self.stage.init) and init.match_images and matchable(report):
                self._match_seam(given, init.match_images)
            self.say(write_report(self.folder, self.stage, report, given.name, self.state.network))
        elif (init := self.stage.init) and ancestor is not None:
            report, inherited = start_from(self.state, self.recipe, self.stage, ancestor)
            if init.match_images:
                earlier = self.recipe[init.stage]
                process = earlier.objective.process
                source = Given(init.stage, inherited, earlier.backbone, earlier.codec, process, earlier.size)
                self._match_seam(source, init.match_images)
            self.say(write_report(self.folder, self.stage, report, init.stage, self.state.network))

    def _match_seam(self, given: Given, count: int) -> None:
        source = given.backbone.build().to(self.device)
        load_weights(source, given.weights)
        ids = [self.order.at(i) for i in range(count)]
        drawn = samples(self.stage, self.dataset, ids, self.rng, self.device, self.reader)
        processes = self.stage.objective.process, given.process
        match_seam(self.state.network, source, drawn, processes, given.codec.latent_size(given.size))
        self.state.average.restart(self.state.network, ("seam.scale", "seam.shift"))

    @property
    def images(self) -> int:
        """Images seen."""
        return self.state.step * self.stage.batch

    def due(self, every_images: int) -> bool:
        """Whether something that happens every so many images happens after this step."""
        return self.state.step % max(1, every_images // self.stage.batch) == 0

    def save(self) -> None:
        """Publishes a checkpoint of this step and clears old ones."""
        stage, state = self.stage, self.state
        saved = {
            "recipe": to_data(self.recipe),
            "stage": stage.name,
            "step": state.step,
            "images": self.images,
            "ema_updates": state.average.updates,
            "ema_born": state.average.born,
            "bad_steps": state.bad_steps,
            "unreadable": state.unreadable,
            "classes": list(self.dataset.classes),
            "fingerprint": self.dataset.fingerprint,
            "samples": len(self.dataset),
            "codec": stage.codec.identity(),
            "text": self.reader.identity if self.reader else "",
            "threads": torch.get_num_threads(),
            "versions": {"pixelspace": pixelspace.__version__, "torch": torch.__version__},
        }
        parts = {**tensors_of(state), **({"nothing": self.nothing} if self.nothing else {})}
        checkpoint.save(self.folder / "checkpoints", state.step, parts, saved)
        every = max(1, stage.save_images // stage.batch) * stage.keep_every
        best = {step for step, _, _ in judging.best_steps(stage, self.folder).values()}
        checkpoint.prune(self.folder / "checkpoints", keep_last=3, keep_every=every, protect=best)

    @property
    def _holds_captions(self) -> bool:
        return self.reader is not None and self.dataset.holds_images and len(self.held_ids) > 1

    def captions(self, numbers: range) -> list[str]:
        """By what images of these numbers are drawn on the way: captions of the samples at the same positions."""
        if self.reader is None:
            return []
        return [self.dataset.texts(self.order.at(i))[0] for i in numbers]

    def look(self, metrics: Metrics, samples: bool, validate: bool) -> None:
        """Previews and the held-out loss, with averaged weights."""
        with evaluating(self.state.network, self.state.average.tensors, self.stage) as backbone:
            if validate and len(self.held_ids):
                held = held_out_loss(
                    self.stage, backbone, self.dataset, self.held_ids.tolist(), self.rng, self.device, self.reader
                )
                metrics.write("validation", self.state.step, self.images, loss=held.loss, octiles=held.octiles)
            if samples:
                texts = self.captions(range(self.stage.sample_count))
                folder = self.folder / "samples"
                save_sheets(sample_images(self.stage, backbone, self.device, self.reader, texts), folder, self.images)
                if texts:
                    (folder / "captions.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        if self.state.step:
            plot_loss(self.folder, self.folder / "loss.png")

    def judge(self, evaluator: Evaluator, metrics: Metrics, progress: bool) -> None:
        """What an evaluator makes of the averaged weights; the checkpoint it has found best is kept."""
        stage, average = self.stage, self.state.average.tensors
        crop = "center" if stage.data.crop == "random" else stage.data.crop

        def reader(ids: np.ndarray) -> Callable[[range], Tensor]:
            return lambda numbers: (
                read(self.dataset, ids[numbers.start : numbers.stop].tolist(), stage.size, crop).images
            )

        def known_as(ids: np.ndarray) -> str:
            return f"{self.dataset.fingerprint}, {sha256(ids.tobytes()).hexdigest()}, {stage.size}, {crop}"

        held = None
        if self._holds_captions:
            captions = [self.dataset.texts(index)[0] for index in self.held_ids.tolist()]
            held = Held(captions, reader(self.held_ids), known_as(self.held_ids))
        shown = self.folder / "evaluation" / evaluator.name
        with evaluating(self.state.network, average, stage) as backbone:
            look = Look(
                draw=lambda seed, numbers, labels, captions: drawn(
                    stage,
                    backbone,
                    self.device,
                    numbers,
                    labels,
                    seed,
                    exact=True,
                    reader=self.reader,
                    texts=captions or self.captions(numbers),
                )[0].permute(0, 3, 1, 2),
                drawn=f"{stage.name} at {self.images} images, {digest(average)}, {stage.sampling}",
                read=reader(self.train_ids) if self.dataset.holds_images else None,
                trained_on=known_as(self.train_ids),
                count=len(self.train_ids),
                shape=(3, *stage.size),
                classes=stage.backbone.num_classes,
                folder=shown / f"{self.images:010d}",
                shared=shown / "reference",
                weights=self.weights_folder,
                device=self.device,
                progress=progress,
                held=held,
            )
            judging.record(metrics, evaluator, self.state.step, self.images, evaluator.evaluate(look))
        judging.plot(stage, self.folder)
        step, name, value = judging.best_steps(stage, self.folder)[evaluator.name]
        self.say(f"{evaluator.name}: best {name} so far {value:.5g}, at {step * stage.batch:,} images")

    def note_unreadable(self, raw: Raw) -> None:
        """Counts samples that had to be replaced; too many stop the run, with a checkpoint."""
        for name, reason in raw.bad:
            if name not in self.told:
                self.say(f"unreadable, replaced by another: {name}: {reason}")
            self.told.add(name)
            self.state.unreadable.append(self.images)
        recent = [at for at in self.state.unreadable if at > self.images - UNREADABLE_WINDOW]
        self.state.unreadable = recent
        if raw.bad and len(recent) > UNREADABLE_MAX:  # what was mended since the last start may go on
            self.save()
            raise DataError(
                f"{len(recent)} of the last {UNREADABLE_WINDOW:,} samples could not be read "
                f"({UNREADABLE_MAX} allowed); the last: {raw.bad[-1][0]}: {raw.bad[-1][1]}"
            )

    def note_not_finite(self, raw: Raw, report: StepReport, metrics: Metrics) -> None:
        """Logs a step that did not count, with all that is needed to repeat it; too many stop the run."""
        step = self.state.step - 1
        replay = {
            "stage": self.stage.name,
            "step": step,
            "seed": self.recipe.seed,
            "loss": repr(report.loss),
            "grad_norm": repr(report.grad_norm),
            "samples": [
                {"pos": pos, "name": self.dataset.name(index), "sigma": sigma, "loss": repr(loss)}
                for pos, index, sigma, loss in zip(
                    raw.pos.tolist(), raw.ids.tolist(), report.sigmas.tolist(), report.losses.tolist(), strict=True
                )
            ],
        }
        path = self.folder / "replay" / f"step-{step:08d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(replay, indent=1), encoding="utf-8")
        metrics.write("not_finite", step, self.images, replay=str(path.name))
        state = self.state
        state.bad_steps = [*(at for at in state.bad_steps if at > step - BAD_WINDOW), step]
        self.say(f"step {step}: loss {report.loss}, gradient norm {report.grad_norm}: skipped; see {path}")
        if len(state.bad_steps) > self.stage.bad_steps:
            raise NumericalError(
                f"stage {self.stage.name!r}: {len(state.bad_steps)} steps of the last {BAD_WINDOW} had a loss or "
                f"gradient that is not finite ({self.stage.bad_steps} allowed); the last is described in {path}. "
                f"Resume with a lower optimizer.lr and --accept-changes, or start anew with precision=fp32"
            )

    def train(self, trackers: tuple[str, ...], progress: bool) -> None:
        """Steps from where the state stands to the stage's end.

        Raises:
            Stopped: SIGINT or SIGTERM came; this step's checkpoint is saved.
        """
        stage, state = self.stage, self.state
        metrics = Metrics(self.folder, open_trackers(trackers, self.folder, f"{self.recipe.name}-{stage.name}"))
        positions = Positions(self.dataset, self.order, stage.data, stage.size, self.rng)
        octiles, reports = OctileMeans.of(stage.objective.levels), list[StepReport]()
        if state.step == 0:
            self.look(metrics, samples=False, validate=True)
        for evaluator in judging.due(stage, self.folder, state.step):  # one that a stop cut short
            self.judge(evaluator, metrics, progress)
        bar = tqdm(total=stage.images, initial=self.images, unit="img", desc=stage.name, disable=not progress)
        with bar, asked_to_stop() as stop:
            stream = batches(positions, self.images, stage.batch, self.device)
            since, waited = time.monotonic(), 0.0
            while self.images < stage.images:
                asked_at = time.monotonic()
                raw = next(stream)
                waited += time.monotonic() - asked_at
                self.note_unreadable(raw)
                report = train_step(state, self.forward, stage, raw, self.rng, self.reader)
                bar.update(stage.batch)
                if report.finite:
                    reports.append(report)
                    octiles.add(report.sigmas.cpu(), report.losses.cpu())
                else:
                    self.note_not_finite(raw, report, metrics)
                if state.step % stage.log_steps == 0 and reports:
                    seconds = time.monotonic() - since
                    loss = sum(r.loss for r in reports) / len(reports)
                    metrics.write(
                        "train",
                        state.step,
                        self.images,
                        loss=loss,
                        grad_norm=sum(r.grad_norm for r in reports) / len(reports),
                        lr=state.optimizer.param_groups[0]["lr"],
                        ema_decay=stage.ema.decay(max(state.average.updates - 1, 0)),
                        images_per_second=len(reports) * stage.batch / seconds,
                        data_wait=waited / seconds,
                        octiles=octiles.take(),
                    )
                    bar.set_postfix(loss=f"{loss:.4f}")
                    since, waited, reports = time.monotonic(), 0.0, []
                done = self.images >= stage.images
                samples, validate = done or self.due(stage.sample_images), done or self.due(stage.validate_images)
                judges = judging.due(stage, self.folder, state.step)
                if done or stop.is_set() or judges or self.due(stage.save_images):
                    self.save()
                if samples or validate:
                    try:
                        self.look(metrics, samples, validate)
                    except OSError as error:  # a full disk must not end a run over a picture
                        self.say(f"no preview at {self.images:,} images: {error}")
                    since = time.monotonic()
                if stop.is_set() and not done:
                    raise Stopped(
                        f"stopped on request at {self.images:,} of {stage.images:,} images, checkpoint saved; "
                        f"the same command goes on from here"
                    )
                for evaluator in judges:
                    self.judge(evaluator, metrics, progress)
                    since = time.monotonic()


def run_recipe(
    recipe: Recipe,
    run: Path,
    *,
    device: torch.device,
    cache: Path | None = None,
    trackers: tuple[str, ...] = (),
    given: Given | None = None,
    first: str | None = None,
    judges: Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = tqdm.write,
) -> None:
    """Trains the stages of `recipe` in `run`, from wherever each stands.

    What is `given` starts the first stage that is trained; `first` names it, and earlier ones must then have been
    trained unless something is given. Networks that judge are looked for in `judges`, by default in `cache`/weights.
    """
    check_start(recipe, run, first, given is not None)
    names = [stage.name for stage in recipe.stages]
    start = names.index(first) if first else 0
    for stage in recipe.stages[start:]:
        folder = stage_folder(run, recipe, stage.name)
        if is_done(stage, folder):
            say(f"stage {stage.name!r} is complete")
            continue
        if stage.warning:
            say(f"warning: {stage.warning}")
        folder.mkdir(parents=True, exist_ok=True)
        ancestor = stage_folder(run, recipe, stage.init.stage) if stage.init else None
        stage_run = StageRun(
            stage,
            folder,
            recipe=recipe,
            device=device,
            cache=cache,
            say=say,
            given=given if stage.name == names[start] else None,
            ancestor=ancestor,
            judges=judges,
        )
        stage_run.train(trackers, progress)
