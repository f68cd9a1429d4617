"""Weights of one network in another, by rules that account for every name.

What Greedy Growing calls reusing a core (Vasconcelos et al. 2024), and every other inheritance from stage to stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.growth.names import hint
from pixelspace.nn.weights import load_weights

Grids = Mapping[str, tuple[int, int]]
"""Tables of positions by name, each with its grid (down, across); see `BackboneConfig.positions`."""


@value
class Rule:
    """Where tensors whose names the pattern `into` covers come from: from the source's tensor of the same name, with
    `prefix` (here, there) exchanged at its start; or, if `fresh`, from nowhere: they stay as they were initialised.

    With `resize` a table of positions for another grid is interpolated.
    """

    into: str
    prefix: tuple[str, str] = ("", "")
    resize: Literal["", "position"] = ""
    fresh: bool = False

    def __post_init__(self) -> None:
        if not self.into:
            raise ValueError('Rule: into is empty; "*" covers all names')
        if self.fresh and (self.resize or self.prefix != ("", "")):
            raise ValueError(f"Rule: {self.into!r} is fresh and comes from nowhere; leave prefix and resize away")
        if self.prefix[0] and not self.into.startswith(self.prefix[0]):
            raise ValueError(f"Rule: {self.into!r} does not start with {self.prefix[0]!r}, which prefix exchanges")

    def source(self, name: str) -> str:
        """The source's name for what is called `name` here."""
        here, there = self.prefix
        return there + name[len(here) :]


IDENTITY = (Rule("*"),)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of every name: `copied` and `resized` with their names in the source, `fresh` ones, and names of the
    source that are `unused`."""

    copied: Mapping[str, str]
    resized: Mapping[str, str]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def interpolated(table: Tensor, old: tuple[int, int], new: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """A table of positions for the grid `new` in `shape`, whose last axis is as in `table`, bicubically.

    Rows that have no place on the grid come first, and stay. Away from the edges what is linear stays linear (Keys 1981
    with a = -1/2, which torch takes for antialiasing alone; its other kernel has a = -3/4 and bends a ramp).
    """
    rows = table.reshape(-1, table.shape[-1])
    lead = len(rows) - old[0] * old[1]
    places = rows[lead:].reshape(1, *old, -1).movedim(-1, 1)
    dtype = torch.promote_types(places.dtype, torch.float32)
    finer = F.interpolate(places.to(dtype), new, mode="bicubic", antialias=True).to(table.dtype)
    return torch.cat([rows[:lead], finer.movedim(1, -1).reshape(-1, rows.shape[1])]).reshape(shape)


def _resized(name: str, table: Tensor, like: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    width = like.shape[-1] if like.ndim else 0
    lead = table.numel() // max(width, 1) - old[0] * old[1]
    if table.shape[-1:] != like.shape[-1:] or (lead + new[0] * new[1]) * width != like.numel():
        raise UserError(
            f"{name}: a table of shape {tuple(table.shape)} for {old[0]}x{old[1]} places does not become one of "
            f"{tuple(like.shape)} for {new[0]}x{new[1]}; only the grid may differ"
        )
    return interpolated(table, old, new, tuple(like.shape))


def _covered(names: list[str], rules: tuple[Rule, ...]) -> dict[str, Rule]:
    """The first rule for each name."""
    found: dict[str, Rule] = {}
    for name in names:
        rule = next((rule for rule in rules if fnmatchcase(name, rule.into)), None)
        if rule is None:
            raise UserError(
                f"{name}: no rule covers it, of {', '.join(repr(rule.into) for rule in rules) or 'none'}; "
                f'add Rule("{name.partition(".")[0]}.*"), or with fresh=True if it is to start fresh'
            )
        found[name] = rule
    for rule in rules:
        if rule not in found.values():
            hidden = any(fnmatchcase(name, rule.into) for name in names)
            why = (
                "rules before it cover all its names" if hidden else f"no tensor is called so; {hint(rule.into, names)}"
            )
            raise UserError(f"rule {rule.into!r} covers nothing: {why}")
    return found


def transfer(
    src: Mapping[str, Tensor], dst: nn.Module, rules: tuple[Rule, ...], grids: tuple[Grids, Grids] = ({}, {})
) -> Report:
    """Sets each tensor of `dst` from `src` by the first rule that covers its name; `grids` are either's.

    On the meta device only names and shapes are compared.

    Raises:
        UserError: a name that no rule covers, a rule that covers nothing, a tensor that the source has not, or has in
            another shape; nothing is changed then.
        CheckpointError: values that are not finite.
    """
    own = dst.state_dict()
    covered = _covered(list(own), rules)
    copied, resized, fresh, given = {}, {}, [], dict(own)
    for name, rule in covered.items():
        if rule.fresh:
            fresh.append(name)
            continue
        there = rule.source(name)
        if there not in src:
            raise UserError(
                f"{name}: rule {rule.into!r} asks for {there!r}, which the source lacks; {hint(there, src.keys())}; "
                f'put Rule("{name.rpartition(".")[0]}.*", fresh=True) before it if it is to start fresh'
            )
        tensor, (theirs, ours) = src[there], grids
        if rule.resize and there in theirs and name in ours and theirs[there] != ours[name]:
            tensor = _resized(name, tensor, own[name], theirs[there], ours[name])
        if tensor.shape != own[name].shape:
            finer = there in theirs and name in ours and theirs[there] != ours[name]
            way = 'add resize="position" to the rule, or ' if finer else ""
            raise UserError(
                f"{name}: has shape {tuple(own[name].shape)} here and {tuple(tensor.shape)} in the source ({there}); "
                f"{way}give it Rule({name!r}, fresh=True) before {rule.into!r}"
            )
        given[name] = tensor
        (copied if tensor is src[there] else resized)[name] = there
    if not any(tensor.is_meta for tensor in own.values()):
        load_weights(dst, given)
    used = {*copied.values(), *resized.values()}
    return Report(copied, resized, tuple(fresh), tuple(name for name in src if name not in used))
