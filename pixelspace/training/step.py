"""What a step does: draw, forward, backward, clip, step, average."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelspace.data.loader import Raw, to_model_space
from pixelspace.random import Rng
from pixelspace.text.encoder import Reader
from pixelspace.training.optim import set_rate, step_if
from pixelspace.training.parallel import Engine
from pixelspace.training.stage import Stage
from pixelspace.training.state import State
from pixelspace.training.words import with_text


@dataclass(frozen=True)
class StepReport:
    """Of one step, over all ranks: per-sample losses and sigmas (B,), their mean, the gradient's norm before clipping,
    if it counted, how many samples had to be replaced, and whether a rank was asked to stop."""

    losses: Tensor
    sigmas: Tensor
    loss: float
    grad_norm: float
    finite: bool
    replaced: int
    stop: bool


class Coming:
    """The report of a step that the device may still be at: it is read without holding up the steps after it."""

    def __init__(self, row: Tensor, batch: int):
        self._row, self._batch = row.to("cpu", non_blocking=True), batch
        self._event = None
        if row.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> StepReport:
        """Waits for the step's end."""
        if self._event is not None:
            self._event.synchronize()
        loss, grad_norm, finite, replaced, stop = self._row[:5].tolist()
        losses, sigmas = self._row[5:].split(self._batch)
        return StepReport(losses, sigmas, loss, grad_norm, bool(finite), int(replaced), bool(stop))


def train_step(
    state: State,
    forward: Callable[..., Tensor],
    stage: Stage,
    raw: Raw,
    rng: Rng,
    reader: Reader | None = None,
    engine: Engine | None = None,
    stop: bool = False,
) -> Coming:
    """Draw, forward, backward, clip, step, average, on this rank's share `raw` of the batch; a loss or gradient that is
    not finite, on any rank, changes only the step."""
    device = next(state.network.parameters()).device
    engine = engine or Engine(stage)
    seen = state.step * stage.batch
    each = torch.zeros(2, stage.batch, device=device)
    for part in engine.parts:
        own = raw.part(part.start - engine.rows.start, part.stop - engine.rows.start)
        with engine.accumulating(part):
            batch = with_text(to_model_space(own, stage.data, stage.codec, rng, device), own.texts, reader)
            draw = stage.objective.draw(batch, stage.batch, seen / stage.images, rng)
            torch.manual_seed(rng.key("dropout", state.step, part.start))
            loss = stage.objective.loss(forward, batch, draw)
            engine.backward(loss.sum() / stage.batch, state.network, part)
        each[0, part.start : part.stop], each[1, part.start : part.stop] = loss.detach(), draw.sigma
    engine.finish(state.network)

    told = torch.tensor([len(raw.bad), stop], dtype=torch.float32).to(device, non_blocking=True)
    shared = engine.ranks.total(torch.cat([told, each.flatten()]))
    norm = engine.clip(state.network, stage.optimizer.clip or math.inf)
    loss = shared[2 : 2 + stage.batch].mean()
    finite = loss.isfinite() & norm.isfinite()
    rate = stage.optimizer.lr * stage.schedule.factor(seen, stage.images, stage.batch)
    set_rate(state.optimizer, rate, seen, stage.batch)
    step_if(state.optimizer, finite)
    state.average.update(state.network, stage.ema, finite)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return Coming(torch.cat([torch.stack([loss, norm, finite.to(loss.dtype)]), shared]), stage.batch)
