"""What a stage takes over from an earlier one, checked before anything is trained and written down when it is done."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pixelspace.data.codec import Codec
from pixelspace.errors import CheckpointError, UserError
from pixelspace.growth.freeze import freeze
from pixelspace.growth.transfer import IDENTITY, Report, transfer
from pixelspace.nn.weights import digest, load_weights
from pixelspace.noise.process import Process
from pixelspace.training import checkpoint
from pixelspace.training.ema import Average
from pixelspace.training.optim import load_state_by_name
from pixelspace.training.stage import Recipe, Stage
from pixelspace.training.state import State
from pixelspace.types import BackboneConfig

REPORT = "transfer.json"


@dataclass(frozen=True)
class Given:
    """Weights from outside the run, what they are called, and of what: a network, in model space of a codec and a size
    (height, width) of images, under a process."""

    name: str
    weights: Mapping[str, Tensor]
    backbone: BackboneConfig
    codec: Codec
    process: Process
    size: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Of a stage: its network on the meta device, what its rules do with every name, if it inherits, and the parameters
    that will not learn."""

    network: nn.Module
    report: Report | None
    frozen: tuple[str, ...]


def _levels(source: BackboneConfig, heir: BackboneConfig) -> str:
    """What may be why weights do not fit: another number of levels; "" where there are as many."""
    if source.pyramid == heir.pyramid:
        return ""
    return f"; its network has levels {source.pyramid}, this one {heir.pyramid}"


def planned(recipe: Recipe) -> dict[str, Plan]:
    """By stage, what is inherited and frozen, found on the meta device.

    Raises:
        UserError: rules, names to freeze or groups of the optimiser that do not fit the networks.
    """
    plans = dict[str, Plan]()
    for stage in recipe.stages:
        with torch.device("meta"):
            network = stage.backbone.build()
        report = None
        try:
            if stage.init:
                ancestor = recipe[stage.init.stage]
                grids = ancestor.backbone.positions, stage.backbone.positions
                report = transfer(plans[ancestor.name].network.state_dict(), network, stage.init.rules, grids)
            frozen = freeze(network, stage.freeze)
            stage.optimizer.placed(network)
        except UserError as error:
            heir = f" (from {stage.init.stage!r})" if stage.init and report is None else ""
            levels = _levels(recipe[stage.init.stage].backbone, stage.backbone) if stage.init and heir else ""
            raise UserError(f"stage {stage.name!r}{heir}: {error}{levels}") from error
        if stage.init and stage.init.match_images and not (report and matchable(report)):
            raise UserError(
                f"stage {stage.name!r}: init.match_images sets an affine seam that starts fresh, and this network has "
                f"none; set backbone.seam to 'affine' and leave it fresh, or match_images to 0"
            )
        if (
            stage.init
            and stage.init.match_images
            and "core" not in dict(plans[stage.init.stage].network.named_children())
        ):
            raise UserError(
                f"stage {stage.name!r}: init.match_images compares what enters two cores, and stage "
                f"{stage.init.stage!r} has no core; inherit from one that has, or set match_images to 0"
            )
        plans[stage.name] = Plan(network, report, frozen)
    return plans


def matchable(report: Report) -> bool:
    """Whether the network has a seam that starts fresh and can be set: see `training.seam`."""
    return {"seam.scale", "seam.shift"} <= set(report.fresh)


def take(network: nn.Module, stage: Stage, given: Given) -> Report:
    """Sets the network of `stage` from what is given: whole where it fits, else by the stage's rules.

    Raises:
        CheckpointError: it does not fit, and the stage has no rules; or it is not finite.
        UserError: the rules do not say how it fits, or it is of another range of data.
    """
    if type(given.codec) is not type(stage.codec):
        raise UserError(
            f"stage {stage.name!r} works on {type(stage.codec).__name__}, and {given.name} learnt another range of "
            f"data ({type(given.codec).__name__}); take weights of the same"
        )
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    fits = shapes == {name: tensor.shape for name, tensor in given.weights.items()}
    grids = given.backbone.positions, stage.backbone.positions
    try:
        if stage.init is None and not fits:
            load_weights(network, given.weights)  # refuses, and of unknown names, too, which rules leave unused
        rules = IDENTITY if fits or stage.init is None else stage.init.rules
        return transfer(given.weights, network, rules, grids)
    except (CheckpointError, UserError) as error:
        levels = _levels(given.backbone, stage.backbone)
        raise type(error)(f"stage {stage.name!r} from {given.name}: {error}{levels}") from error


def write_report(folder: Path, stage: Stage, report: Report, source: str, network: nn.Module) -> str:
    """Writes what became of every name, with the SHA-256 of what was copied, and gives one line about it."""
    own = network.state_dict()
    carried = digest({name: own[name] for name in report.copied})
    told = {"stage": stage.name, "source": source, "copied_sha256": carried, **asdict(report)}
    (folder / REPORT).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    counts = {name: len(getattr(report, name)) for name in ("copied", "resized", "fresh", "unused")}
    return f"{stage.name} from {source}: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n) + " tensors"


def _moments(report: Report, optimizer: torch.optim.Optimizer, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of what is copied and learns, under the names here; what did not learn there has none yet."""
    by_owner: dict[str, dict[str, Tensor]] = {}
    for key, tensor in theirs.items():
        owner, _, moment = key.rpartition(".")
        by_owner.setdefault(owner, {})[moment] = tensor
    learnt = [name for group in optimizer.param_groups for name in group["names"] if name in report.copied]
    return {
        f"{name}.{moment}": tensor
        for name in learnt
        for moment, tensor in by_owner.get(report.copied[name], {}).items()
    }


def check_source(
    recipe: Recipe, stage: Stage, ancestor: Path, newest: Path | None, seen: int, refused: tuple[str, ...] = ()
) -> None:
    """Refuses to inherit from a stage whose `newest` good checkpoint in `ancestor` is not there, or has not `seen` the
    end; `refused` says why later ones are not good.

    Raises:
        CheckpointError: the stage has no checkpoint.
        UserError: the stage is not trained to its end.
    """
    assert stage.init is not None
    earlier = recipe[stage.init.stage]
    if newest is None:
        raise CheckpointError(
            f"{ancestor}: stage {earlier.name!r} has no checkpoint to inherit; train it first, or start stage "
            f"{stage.name!r} by --from"
        )
    if seen != earlier.images:
        damaged = f" ({'; '.join(refused)}: move it away)" if refused else ""
        raise UserError(
            f"stage {stage.name!r} inherits from {earlier.name!r}, which stands at {seen:,} of {earlier.images:,} "
            f"images{damaged}; train it to its end first, or take the weights as they are by --from {newest}"
        )


def start_from(state: State, recipe: Recipe, stage: Stage, ancestor: Path) -> tuple[Report, Mapping[str, Tensor]]:
    """Weights, and on request average and moments, of an earlier stage's last checkpoint, which lies in `ancestor`;
    what became of every name, and the weights there.

    Raises:
        CheckpointError: the stage has no checkpoint.
        UserError: the stage does not stand at its end.
    """
    assert stage.init is not None
    init, earlier = stage.init, recipe[stage.init.stage]
    resumed = checkpoint.resume(ancestor / "checkpoints")
    seen, refused = (resumed.contents.state["images"], resumed.refused) if resumed else (0, ())
    check_source(recipe, stage, ancestor, resumed and resumed.path, seen, refused)
    assert resumed is not None
    parts, saved = resumed.contents.parts, resumed.contents.state
    grids = earlier.backbone.positions, stage.backbone.positions
    weights = parts["ema" if init.weights == "ema" else "model"]
    report = transfer(weights, state.network, init.rules, grids)
    state.average = Average(state.network, stage.ema_device)
    if init.ema == "carry":
        tensors = {name: parts["ema"][there] for name, there in report.copied.items()}
        updates, born = saved["ema_updates"], saved.get("ema_born", {})
        ages = {name: int(born[there]) for name, there in report.copied.items() if there in born}
        ages |= dict.fromkeys((*report.fresh, *report.resized), int(updates))
        state.average.load(tensors, updates, ages)
    if init.optimizer:
        load_state_by_name(state.optimizer, _moments(report, state.optimizer, parts["optimizer"]))
    return report, weights
