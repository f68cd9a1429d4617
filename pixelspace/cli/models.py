"""Commands about models: train, show, import, recipes, demo."""

import json as json_format
import sys
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from pixelspace.cli.given import Settings, cache_folder, recipe_of, weights_folder
from pixelspace.errors import PixelspaceError, Stopped, UserError
from pixelspace.recipes import RECIPES


def train(
    recipe: Positional[str],
    *,
    settings: Settings = (),
    data: str | None = None,
    text: str | None = None,
    out: Path | None = None,
    start_from: Annotated[Path | None, arg(name="from")] = None,
    stage: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    judge: tuple[str, ...] = (),
    judge_images: int | None = None,
    track: tuple[str, ...] = (),
    shard: Literal["none", "full", "node"] = "none",
    patience: float | None = None,
    accept_changes: bool = False,
    quiet: bool = False,
) -> None:
    """Train a recipe; the same command, or `train RUN`, goes on where it stopped. On several devices: `torchrun
    --nproc-per-node N -m pixelspace train ...`.

    Args:
        recipe: A recipe's name, a run's folder, a recipe.json, or file.py:function.
        settings: Settings to replace, by their dotted path; see `pixelspace show RECIPE --json`.
        data: What to train on in place of the recipe's data: a folder of images, of latents (`encode`), of tar shards
            or of clips, a Parquet file, COCO's captions, or a URL of such (s3://, gs://, https://).
        text: What reads the captions, in place of the recipe's encoder: minilm, bytes, a folder of embeddings
            (`embed`), a text encoder's folder, or its name on the hub.
        out: The run's folder; runs/NAME by default.
        start_from: A model, run or checkpoint whose weights the first stage starts with.
        stage: The stage to start with.
        device: cpu, cuda, mps or auto.
        threads: Threads on the CPU; as many as the machine has by default.
        judge: Protocols of `evaluate` by which the averaged weights are judged on the way; the best checkpoint is kept.
        judge_images: How many images lie between two judgements; as between two previews by default.
        track: tensorboard, wandb or trackio, each with its extra: numbers and previews go there, too.
        shard: With several devices, what each keeps of weights, average and moments: all (none), its share (full), or
            its share among the devices of its machine (node).
        patience: Seconds without a sign of life after which a device's process is given up, and all stop; 600 by
            default.
        accept_changes: Resume although the recipe has changed.
        quiet: No progress bar.
    """
    import torch
    from tqdm import tqdm

    from pixelspace.config import nearest
    from pixelspace.dist import PATIENCE, joined, pick_device
    from pixelspace.training.loop import run_recipe
    from pixelspace.training.parallel import check_alike, check_ranks
    from pixelspace.training.run import opened_run
    from pixelspace.training.standing import check_start
    from pixelspace.training.trackers import check_trackers

    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads must be at least 1, found {threads}")
        torch.set_num_threads(threads)
    if patience is not None and patience < 5:
        raise UserError(f"--patience must be at least 5 seconds, found {patience:g}")
    chosen = pick_device(device)
    with joined(chosen, patience or PATIENCE) as ranks, ExitStack() as stack:
        made = recipe_of(recipe, data, settings, judge, judge_images, text)
        names = [one.name for one in made.stages]
        if stage is not None and stage not in names:
            raise UserError(f"--stage: no stage {stage!r}; {nearest(stage, names)}")
        is_run = (Path(recipe) / "recipe.json").is_file()
        run = Path(recipe) if is_run and out is None else out or Path("runs") / made.name
        given = None
        if start_from is not None:
            from pixelspace.api import open_model
            from pixelspace.training.inherit import Given

            model = open_model(start_from, "cpu")
            weights, config = model.backbone.state_dict(), model.config
            given = Given(str(start_from), weights, config.backbone, config.codec, config.process, config.size)
        check_trackers(track)
        for one in made.stages:
            check_ranks(one, ranks.world, shard)
        check_alike(ranks, made, chosen, shard)
        check_start(made, run, stage, given is not None)
        with ranks.in_turn():
            if ranks.first:
                stack.enter_context(opened_run(run, made, accept_changes=accept_changes))
        try:
            run_recipe(
                made,
                run,
                device=chosen,
                cache=cache_folder(),
                trackers=track,
                given=given,
                first=stage,
                judges=weights_folder(),
                progress=ranks.first and not quiet,
                say=lambda text: tqdm.write(text, file=sys.stderr),
                ranks=ranks,
                sharding=shard,
            )
        except Stopped:  # as was asked for
            raise
        except PixelspaceError:
            with suppress(OSError), (run / "error.log").open("a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
            raise
    if ranks.first:
        print(f"trained: {run} (pixelspace sample {run})")


def import_(
    file: Positional[Path],
    out: Positional[Path],
    *,
    system: str = "k-diffusion",
    config: Path | None = None,
    weights: Literal["ema", "raw"] = "ema",
) -> None:
    """Read another system's weights and write a model that `sample` and `train --from` accept.

    Args:
        file: Inference safetensors, or a training checkpoint (only its data is read; no code in it runs).
        out: The model folder to write.
        system: Whose weights they are: k-diffusion, maskdit or ml-mdm.
        config: The original's own configuration (JSON), where the file carries none.
        weights: The averaged or the raw ones of a training checkpoint.
    """
    from pixelspace import api

    model = api.import_checkpoint(file, system=system, config=config, weights=weights, device="cpu")
    count = sum(parameter.numel() for parameter in model.backbone.parameters())
    print(f"{count:,} parameters: {model.save(out)}")


def show(
    recipe: Positional[str],
    *,
    settings: Settings = (),
    data: str | None = None,
    text: str | None = None,
    json: bool = False,
    depth: int = 1,
) -> None:
    """Print a recipe: its stages, their networks with parameter counts, GMACs and memory.

    Args:
        recipe: A recipe's name, a run's folder, a recipe.json, or file.py:function.
        settings: Settings to replace, by their dotted path.
        data: What to train on in place of the recipe's data: a folder of images, of latents (`encode`), of tar shards
            or of clips, a Parquet file, COCO's captions, or a URL of such (s3://, gs://, https://).
        text: What reads the captions, in place of the recipe's encoder; see `train`.
        json: Print every setting as JSON instead.
        depth: How deep into the network to go.
    """
    from pixelspace.config import to_data
    from pixelspace.training.describe import describe

    made = recipe_of(recipe, data, settings, text=text)
    print(json_format.dumps(to_data(made), indent=1) if json else describe(made, depth))


def recipes() -> None:
    """List the recipes, one line each."""
    width = max(map(len, RECIPES))
    for name, (_, line) in RECIPES.items():
        print(f"{name:{width}}  {line}")


def demo(*, out: Path = Path("runs/hdit-demo"), device: str = "auto") -> None:
    """Train the demo on the packaged emoji faces and look at what it learnt: minutes on two CPU cores.

    Args:
        out: The run's folder.
        device: cpu, cuda, mps or auto.
    """
    train("hdit-demo", out=out, device=device)
    from pixelspace.demo import report

    print(report(out, device))
