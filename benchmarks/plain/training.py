"""A training step as one would first write it: the optimiser and the average go tensor by tensor, and the loss is asked
for at each step."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pixelspace.data.loader import Raw, to_model_space
from pixelspace.random import Rng
from pixelspace.training.stage import Stage


class Training:
    """A network that learns as `stage` says; `groups` are the names of parameters that learn alike, by ours."""

    def __init__(self, network: nn.Module, forward: Callable[..., Tensor], stage: Stage, like: nn.Module):
        self.network, self.forward, self.stage = network, forward, stage
        self.average = copy.deepcopy(network)
        own, given, self.steps = dict(network.named_parameters()), stage.optimizer, 0
        self.factors = [group.lr_factor for group in like.param_groups()]  # type: ignore[operator]
        groups = [
            {"params": [own[name] for name in group.names], "weight_decay": given.weight_decay if group.decay else 0.0}
            for group in like.param_groups()  # type: ignore[operator]
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=given.lr, betas=given.betas, eps=given.eps, foreach=False, fused=False
        )

    def update(self) -> None:
        """Moves the weights by their gradients, and the average towards them."""
        self.optimizer.step()
        decay = self.stage.ema.decay(self.steps)
        with torch.no_grad():
            for past, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                past.mul_(decay).add_(now, alpha=1 - decay)

    def step(self, raw: Raw, rng: Rng) -> float:
        """The loss of one step."""
        stage, seen = self.stage, self.steps * self.stage.batch
        device = next(self.network.parameters()).device
        batch = to_model_space(raw, stage.data, stage.codec, rng, device)
        draw = stage.objective.draw(batch, stage.batch, seen / stage.images, rng)
        torch.manual_seed(rng.key("dropout", self.steps, 0))
        loss = stage.objective.loss(self.forward, batch, draw).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), stage.optimizer.clip or math.inf, foreach=False)
        if math.isfinite(norm.item()):
            rate = stage.optimizer.lr * stage.schedule.factor(seen, stage.images, stage.batch)
            for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
                group["lr"] = rate * factor
            self.update()
        self.optimizer.zero_grad()
        self.steps += 1
        return loss.item()
