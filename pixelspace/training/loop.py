"""The one loop: a recipe's stages in order, a stage's steps, and everything a step does.

A stage folder holds `checkpoints/`, `metrics.jsonl`, `loss.png` and `samples/`. The state of a run is its weights,
their average, the optimiser's moments and the step; all else is a function of these and the recipe, so that a run goes
on from any checkpoint to the same bits.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import pixelspace
from pixelspace.config import to_data
from pixelspace.data.loader import Positions, Raw, batches, divide, ordered, read
from pixelspace.dist import Ranks, device_bytes, peak_bytes
from pixelspace.errors import CheckpointError, DataError, NumericalError, ResourceError, Stopped
from pixelspace.growth.freeze import freeze
from pixelspace.growth.transfer import Report
from pixelspace.nn.weights import digest, load_weights
from pixelspace.objectives.denoising import Backbone
from pixelspace.random import Rng
from pixelspace.training import checkpoint, judging
from pixelspace.training.ema import Average
from pixelspace.training.fit import check_as_before, check_data
from pixelspace.training.inherit import Given, matchable, start_from, take, write_report
from pixelspace.training.log import Metrics, OctileMeans, plot_loss
from pixelspace.training.pace import Pace
from pixelspace.training.parallel import Engine, Sharding, check_ranks, held_rows, owned, placed, whole
from pixelspace.training.precision import float32_products
from pixelspace.training.preview import autocast, drawn, evaluating, held_out_loss, sample_images, save_sheets
from pixelspace.training.room import is_out_of_memory, no_room
from pixelspace.training.seam import match_seam, samples
from pixelspace.training.stage import Recipe, Stage
from pixelspace.training.standing import check_start, is_done, stage_folder
from pixelspace.training.state import State, restore, tensors_of
from pixelspace.training.step import Coming, StepReport, train_step
from pixelspace.training.stopping import asked_to_stop
from pixelspace.training.trackers import Tracker, tracking
from pixelspace.training.words import nothing, open_reader
from pixelspace.types import Cond, Evaluator, Held, Look

BAD_WINDOW = 100  # steps over which `Stage.bad_steps` counts
UNREADABLE_WINDOW, UNREADABLE_MAX = 10_000, 10  # samples


def _silent(line: str) -> None:
    """Says nothing."""


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
        ranks: Ranks | None = None,
        sharding: Sharding = "none",
    ):
        self.stage, self.folder, self.recipe, self.device = stage, folder, recipe, device
        self.ranks = ranks or Ranks()
        self.aloud, self.say = say, say if self.ranks.first else _silent
        self.engine = Engine(stage, self.ranks, sharding)
        self.rng = Rng(Rng(recipe.seed).key("stage", stage.name))
        self.weights_folder = judges or (cache or folder) / "weights"
        self.told = set[str]()  # names of unreadable samples
        stage.codec.identity()  # reads a VAE now, not after the images
        with self.ranks.in_turn():  # the first may leave an index in the cache
            self.dataset = stage.data.source.open(cache)
        check_data(stage, self.dataset)
        self.train_ids, self.held_ids = divide(self.dataset, stage.data, recipe.split, self.say)
        self.order = ordered(self.dataset, stage.data, self.train_ids, self.rng, stage.size, stage.batch, self.say)
        self.reader = open_reader(stage, self.dataset, self.train_ids, self.held_ids, device)
        self.nothing = nothing(self.reader)
        for evaluator in stage.evaluators:  # reads its networks now, not after the images
            evaluator.check(self.dataset.holds_images, self._holds_captions, self.weights_folder)
        torch.manual_seed(self.rng.key("init"))
        network = stage.backbone.build()
        network.checkpointing = stage.checkpointing  # type: ignore[assignment]
        freeze(network, stage.freeze)
        if not self.engine.shards or (stage.init and stage.init.match_images):
            network.to(device)
        begun = bool(checkpoint.candidates(folder / "checkpoints"))
        if begun:  # then no rank needs more than its share
            self.engine.shard(network, device)
        self.state = State(network, Average(network, stage.ema_device), stage.optimizer.build(network))
        self._resume_or_start(given, ancestor)
        if not begun and self.engine.shards:
            self.state = self.engine.shared_out(self.state, stage, device)
        module = self.engine.wrap(network, stage)

        def forward(x: Tensor, c_noise: Tensor, cond: Cond, **keep: Tensor) -> Tensor:
            with autocast(stage, device):
                return module(x, c_noise, cond, **keep)

        self.forward = forward

    def _resume_or_start(self, given: Given | None, ancestor: Path | None) -> None:
        resumed = checkpoint.resume(self.folder / "checkpoints", held_rows(self.state.network))
        if len(found := {*self.ranks.meet(resumed and resumed.path.name)}) > 1:
            raise CheckpointError(f"{self.folder}: ranks see different checkpoints there: {found}; share one disk")
        if resumed is not None:
            saved = resumed.contents.state
            for line in resumed.refused:
                self.say(f"refused: {line}")
            check_as_before(self.stage, self.dataset, self.reader, saved, resumed.path.name)
            alike = saved.get("world", 1) == self.ranks.world or self.stage.reduction == "exact"
            if alike and saved["threads"] != torch.get_num_threads():
                self.say(f"using {saved['threads']} threads, as before: another count gives other bits")
                torch.set_num_threads(saved["threads"])
            if given is not None:
                self.say("--from is not used: the stage goes on from its own checkpoint")
            restore(self.state, placed(resumed.contents.parts, self.state.network), saved)
            self.say(f"resuming {self.stage.name} at {self.images:,} images ({resumed.path.name})")
        elif given is not None:
            report = take(self.state.network, self.stage, given)
            self.state.average = Average(self.state.network, self.stage.ema_device)
            if (init := self.stage.init) and init.match_images and matchable(report):
                self._match_seam(given, init.match_images)
            self._report(report, given.name)
        elif (init := self.stage.init) and ancestor is not None:
            report, inherited = start_from(self.state, self.recipe, self.stage, ancestor)
            if init.match_images:
                earlier = self.recipe[init.stage]
                process = earlier.objective.process
                source = Given(init.stage, inherited, earlier.backbone, earlier.codec, process, earlier.size)
                self._match_seam(source, init.match_images)
            self._report(report, init.stage)

    def _report(self, report: Report, source: str) -> None:
        if self.ranks.first:
            self.say(write_report(self.folder, self.stage, report, source, self.state.network))

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
            "world": self.ranks.world,
            "versions": {"pixelspace": pixelspace.__version__, "torch": torch.__version__},
        }
        kept = {**tensors_of(state), **({"nothing": self.nothing} if self.nothing else {})}
        parts = {part: owned(tensors, self.ranks) for part, tensors in kept.items()}
        checkpoint.save(self.folder / "checkpoints", state.step, parts, saved, self.ranks)
        if not self.ranks.first:
            return
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

    @contextmanager
    def _averaged(self) -> Iterator[tuple[Backbone, Mapping[str, Tensor]] | None]:
        """The network with averaged weights, and these, on the first rank; the others wait for it."""
        network, tensors = self.state.network, whole(self.state.average.tensors)
        if self.engine.shards:
            with torch.device("meta"):
                network = self.stage.backbone.build()
        try:
            if self.ranks.first:
                with evaluating(network, tensors, self.stage, self.device) as backbone:
                    yield backbone, tensors
            else:
                yield None
        finally:
            self.ranks.meet()

    def look(self, metrics: Metrics, samples: bool, validate: bool) -> None:
        """Previews and the held-out loss, with averaged weights."""
        with self._averaged() as shown:
            if shown is None:
                return
            backbone, _ = shown
            if validate and len(self.held_ids):
                held = held_out_loss(
                    self.stage, backbone, self.dataset, self.held_ids.tolist(), self.rng, self.device, self.reader
                )
                metrics.write("validation", self.state.step, self.images, loss=held.loss, octiles=held.octiles)
            if samples:
                texts = self.captions(range(self.stage.sample_count))
                folder = self.folder / "samples"
                levels = sample_images(self.stage, backbone, self.device, self.reader, texts)
                for name, path in save_sheets(levels, folder, self.images).items():
                    metrics.picture(name, path, self.images)
                if texts:
                    (folder / "captions.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        if self.state.step:
            plot_loss(self.folder, self.folder / "loss.png")

    def judge(self, evaluator: Evaluator, metrics: Metrics, progress: bool) -> None:
        """What an evaluator makes of the averaged weights; the checkpoint it has found best is kept."""
        stage = self.stage
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
        place = self.folder / "evaluation" / evaluator.name
        with self._averaged() as shown:
            if shown is None:
                return
            backbone, average = shown
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
                folder=place / f"{self.images:010d}",
                shared=place / "reference",
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
        """Says which samples had to be replaced, each once."""
        for name, reason in raw.bad:
            if name not in self.told:
                self.aloud(f"unreadable, replaced by another: {name}: {reason}")
            self.told.add(name)

    def count_unreadable(self, step: int, raw: Raw, replaced: int) -> None:
        """Counts samples that any rank had to replace; too many stop the run, with a checkpoint."""
        at = step * self.stage.batch
        recent = [*self.state.unreadable, *[at] * replaced]
        self.state.unreadable = recent = [one for one in recent if one > at - UNREADABLE_WINDOW]
        if replaced and len(recent) > UNREADABLE_MAX:  # what was mended since the last start may go on
            self.save()
            last = f"; the last: {raw.bad[-1][0]}: {raw.bad[-1][1]}" if raw.bad else ""
            raise DataError(
                f"{len(recent)} of the last {UNREADABLE_WINDOW:,} samples could not be read "
                f"({UNREADABLE_MAX} allowed){last}"
            )

    def note_not_finite(self, step: int, raw: Raw, report: StepReport, metrics: Metrics) -> None:
        """Logs a step that did not count, with all that is needed to repeat it; too many stop the run."""
        rows = slice(self.engine.rows.start, self.engine.rows.stop)
        drawn = report.sigmas[rows].tolist(), report.losses[rows].tolist()
        replay = {
            "stage": self.stage.name,
            "step": step,
            "seed": self.recipe.seed,
            "loss": repr(report.loss),
            "grad_norm": repr(report.grad_norm),
            "samples": [
                {"pos": pos, "name": self.dataset.name(index), "sigma": sigma, "loss": repr(loss)}
                for pos, index, sigma, loss in zip(raw.pos.tolist(), raw.ids.tolist(), *drawn, strict=True)
            ],
        }
        own = f".{self.ranks.rank}" if self.ranks.world > 1 else ""
        path = self.folder / "replay" / f"step-{step:08d}{own}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(replay, indent=1), encoding="utf-8")
        metrics.write("not_finite", step, (step + 1) * self.stage.batch, replay=str(path.name))
        state = self.state
        state.bad_steps = [*(at for at in state.bad_steps if at > step - BAD_WINDOW), step]
        self.say(f"step {step}: loss {report.loss}, gradient norm {report.grad_norm}: skipped; see {path}")
        if len(state.bad_steps) > self.stage.bad_steps:
            raise NumericalError(
                f"stage {self.stage.name!r}: {len(state.bad_steps)} steps of the last {BAD_WINDOW} had a loss or "
                f"gradient that is not finite ({self.stage.bad_steps} allowed); the last is described in {path}. "
                f"Resume with a lower optimizer.lr and --accept-changes, or start anew with precision=fp32"
            )

    def train(self, trackers: list[Tracker], progress: bool) -> None:
        """Steps from where the state stands to the stage's end, told to `trackers`, too.

        Raises:
            Stopped: SIGINT or SIGTERM came; this step's checkpoint is saved.
        """
        stage, state = self.stage, self.state
        metrics = Metrics(self.folder, trackers, quiet=not self.ranks.first)
        positions = Positions(self.dataset, self.order, stage.data, stage.size, self.rng)
        octiles, reports = OctileMeans.of(stage.objective.levels), list[StepReport]()
        if state.step == 0:
            self.look(metrics, samples=False, validate=True)
        for evaluator in judging.due(stage, self.folder, state.step):  # one that a stop cut short
            self.judge(evaluator, metrics, progress)
        bar = tqdm(total=stage.images, initial=self.images, unit="img", desc=stage.name, disable=not progress)
        coming = deque[tuple[int, Raw, Coming]]()
        stopping = False

        def settle(most: int) -> None:
            """Looks at what steps have come to, but for the last few."""
            nonlocal stopping
            while len(coming) > most:
                step, raw, report = coming[0][0], coming[0][1], coming[0][2].read()
                coming.popleft()
                stopping = stopping or report.stop
                if self.ranks.world > 1:
                    self.count_unreadable(step, raw, report.replaced)
                if report.finite:
                    reports.append(report)
                    octiles.add(report.sigmas, report.losses)
                else:
                    self.note_not_finite(step, raw, report, metrics)

        with bar, asked_to_stop() as stop, float32_products(stage.tf32):
            stream = batches(positions, self.images, stage.batch, self.device, self.engine.rows)
            pace = Pace(stage.data.workers)
            while self.images < stage.images:
                raw = pace.next(stream)
                self.note_unreadable(raw)
                step = state.step
                if raw.bad and self.ranks.world == 1:  # of others it is known after the step
                    settle(0)
                    self.count_unreadable(step, raw, len(raw.bad))
                given = state, self.forward, stage, raw, self.rng, self.reader
                try:
                    coming.append((step, raw, train_step(*given, self.engine, stop.is_set())))
                except (RuntimeError, MemoryError) as error:
                    if is_out_of_memory(error):
                        raise ResourceError(no_room(self.stage, device_bytes(self.device))) from error
                    raise
                settle(1)  # not of this step, which the device may still be at
                bar.update(stage.batch)
                done = self.images >= stage.images
                logs = state.step % stage.log_steps == 0
                samples, validate = done or self.due(stage.sample_images), done or self.due(stage.validate_images)
                judges = judging.due(stage, self.folder, state.step)
                stops = stopping or (self.ranks.world == 1 and stop.is_set())  # of others it is known a step later
                saves = done or stops or bool(judges) or self.due(stage.save_images)
                if logs or samples or validate or saves:
                    settle(0)
                if logs and reports:
                    seconds, waited = pace.take()
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
                        data_wait=waited,
                        peak_bytes=peak_bytes(self.device),
                        octiles=octiles.take(),
                    )
                    bar.set_postfix(loss=f"{loss:.4f}")
                    if advice := pace.advice():
                        self.say(advice)
                    reports.clear()
                if saves:
                    self.save()
                if samples or validate:
                    try:
                        with pace.paused():
                            self.look(metrics, samples, validate)
                    except OSError as error:  # a full disk must not end a run over a picture
                        self.say(f"no preview at {self.images:,} images: {error}")
                if stops and not done:
                    raise Stopped(
                        f"stopped on request at {self.images:,} of {stage.images:,} images, checkpoint saved; "
                        f"the same command goes on from here"
                    )
                for evaluator in judges:
                    with pace.paused():
                        self.judge(evaluator, metrics, progress)


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
    ranks: Ranks | None = None,
    sharding: Sharding = "none",
) -> None:
    """Trains the stages of `recipe` in `run`, from wherever each stands.

    What is `given` starts the first stage that is trained; `first` names it, and earlier ones must then have been
    trained unless something is given. Networks that judge are looked for in `judges`, by default in `cache`/weights.
    Several `ranks` call this together; only the first one speaks and writes, but for checkpoints of what is sharded.
    """
    ranks = ranks or Ranks()
    for stage in recipe.stages:
        check_ranks(stage, ranks.world, sharding)
    check_start(recipe, run, first, given is not None)
    names = [stage.name for stage in recipe.stages]
    start = names.index(first) if first else 0
    for stage in recipe.stages[start:]:
        folder = stage_folder(run, recipe, stage.name)
        if is_done(stage, folder):
            if ranks.first:
                say(f"stage {stage.name!r} is complete")
            continue
        for warning in stage.warnings if ranks.first else ():
            say(f"warning: {warning}")
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
            ranks=ranks,
            sharding=sharding,
        )
        with tracking(trackers if ranks.first else (), folder, f"{recipe.name}-{stage.name}") as opened:
            stage_run.train(opened, progress)
