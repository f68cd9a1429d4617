"""The optimiser: AdamW over the network's own parameter groups, its rate a function of images seen."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pixelspace.config import value
from pixelspace.errors import CheckpointError, UserError
from pixelspace.growth.names import hint, matching


class Schedule(ABC):
    """The learning rate as a factor."""

    @abstractmethod
    def factor(self, images: int, total: int, batch: int) -> float:
        """The factor after `images` of the stage's `total`."""


@value
class Constant(Schedule):
    """1, after a linear warm-up over `warmup_images`, and linearly to 0 over the last `cooldown` share of the stage."""

    warmup_images: int = 0
    cooldown: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_images < 0 or not 0 <= self.cooldown <= 1:
            raise ValueError("Constant: needs warmup_images >= 0 and cooldown in [0, 1]")

    def factor(self, images: int, total: int, batch: int) -> float:
        warm = min(1.0, (images + batch) / self.warmup_images) if self.warmup_images else 1.0
        left = (1 - images / total) / self.cooldown if self.cooldown else 1.0
        return warm * min(1.0, max(left, 0.0))


@value
class Inverse(Schedule):
    """(1 + t / inv_gamma)^-power with an exponential warm-up 1 - warmup^(t + 1), t in steps (k-diffusion)."""

    inv_gamma: float
    power: float = 1.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.inv_gamma <= 0 or not 0 <= self.warmup < 1:
            raise ValueError("Inverse: needs inv_gamma > 0 and warmup in [0, 1)")

    def factor(self, images: int, total: int, batch: int) -> float:
        t = images / batch
        return (1 - self.warmup ** (t + 1)) * (1 + t / self.inv_gamma) ** -self.power


@value
class Exponential(Schedule):
    """decay^(t / num_steps) with an exponential warm-up 1 - warmup^(t + 1), t in steps (k-diffusion)."""

    num_steps: float
    decay: float = 0.5
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps <= 0 or self.decay <= 0 or not 0 <= self.warmup < 1:
            raise ValueError("Exponential: needs num_steps > 0, decay > 0 and warmup in [0, 1)")

    def factor(self, images: int, total: int, batch: int) -> float:
        t = images / batch
        return (1 - self.warmup ** (t + 1)) * self.decay ** (t / self.num_steps)


@value
class Group:
    """Parameters whose names the pattern `names` covers, which learn at `lr_factor` times the rate of others, after a
    linear warm-up of their own over the stage's first `warmup_images`."""

    names: str
    lr_factor: float = 1.0
    warmup_images: int = 0

    def __post_init__(self) -> None:
        if self.lr_factor <= 0 or self.warmup_images < 0:
            raise ValueError(
                f"Group: needs lr_factor > 0 and warmup_images >= 0, found {self}; freeze what must not learn"
            )

    def warm(self, images: int, batch: int) -> float:
        """The warm-up's factor after `images`."""
        return min(1.0, (images + batch) / self.warmup_images) if self.warmup_images else 1.0


_OTHERS = Group("*")


@value
class AdamW:
    """AdamW (Loshchilov and Hutter 2019) with the gradient's global norm clipped to `clip` (0: not clipped).

    A parameter belongs to the first of `groups` that covers its name, or to none.
    """

    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    clip: float = 1.0
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.eps <= 0 or self.clip < 0 or self.weight_decay < 0:
            raise ValueError(f"AdamW: lr and eps must be positive, clip and weight_decay not negative, found {self}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"AdamW: betas must be in [0, 1), found {self.betas}")

    def placed(self, network: nn.Module) -> list[dict[str, Any]]:
        """What learns of `network.param_groups()` by group, each with its `lr_factor`.

        Raises:
            UserError: one of `groups` covers nothing that learns.
        """
        parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        own = {name: next((g for g in self.groups if matching(g.names, [name])), _OTHERS) for name in parameters}
        for group in self.groups:
            if group not in own.values():
                raise UserError(
                    f"optimizer.groups: {group.names!r} covers nothing that learns; {hint(group.names, own.keys())}"
                )
        groups = [
            {
                "params": [parameters.pop(name) for name in names],
                "names": names,
                "lr_factor": group.lr_factor * ours.lr_factor,
                "group": ours,
                "weight_decay": self.weight_decay if group.decay else 0.0,
            }
            for group in network.param_groups()  # type: ignore[operator]
            for ours in (*self.groups, _OTHERS)
            if (names := tuple(name for name in group.names if name in own and own[name] is ours))
        ]
        assert not parameters, f"in no parameter group: {sorted(parameters)}"
        return groups

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over what learns of `network.param_groups()`, each group with its `lr_factor`.

        Raises:
            UserError: one of `groups` covers nothing that learns.
        """
        return torch.optim.AdamW(self.placed(network), lr=self.lr, betas=self.betas, eps=self.eps, fused=True)

    def moment_bytes(self, parameter: Tensor) -> int:
        """What the optimiser holds of a parameter: two moments of its size, and its count of steps."""
        return 2 * parameter.nbytes + 4


def set_rate(optimizer: torch.optim.Optimizer, lr: float, images: int, batch: int) -> None:
    """Gives each group `lr` times its own factor, and what its own warm-up leaves of it after `images`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"] * group["group"].warm(images, batch)


def step_if(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Steps where `finite` (), and changes nothing where it is false; a fused optimiser finds out on the device."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:
        optimizer.step()


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_PARTS = ("codes", "scale")


def _plain(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moments as plain tensors: those of 8 bits are codes, and scales of blocks of them."""
    plain = dict[str, Tensor]()
    for key in _MOMENTS:
        parts = [part for part in _PARTS if hasattr(moments[key], part)]
        plain |= {f"{key}_{part}": getattr(moments[key], part) for part in parts} or {key: moments[key]}
    return plain


def _blank(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's moments before its first step."""
    if isinstance(optimizer, torch.optim.AdamW):
        step = torch.zeros((), device=parameter.device)
        return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
    return optimizer.blank(parameter)  # type: ignore[attr-defined]


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments as `<parameter>.<moment>`: order plays no part in them."""
    return {
        f"{name}.{key}": tensor
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
        for key, tensor in _plain(optimizer.state[parameter]).items()
    }


def load_state_by_name(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores what `state_by_name` gave.

    Raises:
        CheckpointError: names that are not the optimiser's own, or moments of another kind.
    """
    left = set(tensors)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if f"{name}.step" not in left:
                continue
            moments = _blank(optimizer, parameter.detach())
            for key, tensor in _plain(moments).items():
                full = f"{name}.{key}"
                if full not in left or tensors[full].shape != tensor.shape:
                    found = ", ".join(sorted(f"{one} {tuple(tensors[one].shape)}" for one in left if name in one))
                    raise CheckpointError(
                        f"optimiser state of {name!r} does not fit the network or its optimizer: expected {full} "
                        f"{tuple(tensor.shape)}, found {found}; take the optimizer of then, or leave moments behind"
                    )
                tensor.copy_(tensors[full])
                left.remove(full)
            optimizer.state[parameter] = moments
    if left:
        raise CheckpointError(f"optimiser state of unknown parameters: {sorted(left)[:3]}")
