"""The command line: train, sample, show, import, prepare, encode, recipes, demo.

Exit codes: 0 done, 2 a command or setting that cannot be meant, 3 data, 4 checkpoint, 5 not finite, 6 disk, memory or
a missing package, 70 a fault of ours, 75 stopped on request with a checkpoint, 130 interrupted.
"""

import errno
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from pixelspace.errors import PixelspaceError, ResourceError, UserError
from pixelspace.recipes import RECIPES

if TYPE_CHECKING:
    from pixelspace.api import Model
    from pixelspace.training.stage import Recipe

Settings = Annotated[tuple[tuple[str, ...], ...], UseAppendAction, arg(name="set", metavar="PATH=VALUE")]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixelspace"


def _function(target: str) -> Callable[[], Any]:
    name, _, function = target.rpartition(":")
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(name)
    made = getattr(module, function, None)
    if not callable(made):
        raise UserError(f"{name}: has no function {function!r} that makes a recipe")
    return made


def _recipe(name: str, data: Path | None = None, settings: tuple[tuple[str, ...], ...] = ()) -> "Recipe":
    from pixelspace.config import from_data, nearest, override, read_json, to_data
    from pixelspace.recipes.values import VALUES
    from pixelspace.training.stage import Recipe

    path = Path(name)
    if name in RECIPES:
        described = to_data(_function(RECIPES[name][0])())
    elif (path / "recipe.json").is_file():
        described = read_json(path / "recipe.json")
    elif path.suffix == ".json":
        described = read_json(path)
    elif ".py:" in name:
        described = to_data(_function(name)())
    else:
        raise UserError(f"no recipe {name!r} (nor a run, recipe.json or file.py:function); {nearest(name, RECIPES)}")
    for setting in (one for group in settings for one in group):
        described = override(described, setting)
    recipe = from_data(described, VALUES)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name}: expected a Recipe, found {type(recipe).__name__}")
    if data is not None:
        recipe = replace(recipe, stages=tuple(_with_folder(stage, data.resolve()) for stage in recipe.stages))
    return recipe


def _with_folder(stage: Any, folder: Path) -> Any:
    from pixelspace.data.latents import Latents, is_latents
    from pixelspace.data.sources import Folder

    source = Latents(str(folder)) if is_latents(folder) else Folder(str(folder))
    return replace(stage, data=replace(stage.data, source=source))


def _open_model(path: Path, device: str) -> "Model":
    from pixelspace import api

    return api.import_checkpoint(path, device=device) if path.is_file() else api.load(path, device=device)


def train(
    recipe: Positional[str],
    *,
    settings: Settings = (),
    data: Path | None = None,
    out: Path | None = None,
    start_from: Annotated[Path | None, arg(name="from")] = None,
    stage: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    track: tuple[str, ...] = (),
    accept_changes: bool = False,
    quiet: bool = False,
) -> None:
    """Train a recipe; the same command, or `train RUN`, goes on where it stopped.

    Args:
        recipe: A recipe's name, a run's folder, a recipe.json, or file.py:function.
        settings: Settings to replace, by their dotted path; see `pixelspace show RECIPE --json`.
        data: A folder of images, or of latents (`encode`), in place of the recipe's data.
        out: The run's folder; runs/NAME by default.
        start_from: A model, run or checkpoint whose weights the first stage starts with.
        stage: The stage to start with.
        device: cpu, cuda, mps or auto.
        threads: Threads on the CPU; as many as the machine has by default.
        track: tensorboard, wandb.
        accept_changes: Resume although the recipe has changed.
        quiet: No progress bar.
    """
    import torch
    from tqdm import tqdm

    from pixelspace.config import nearest
    from pixelspace.dist import pick_device
    from pixelspace.training.loop import run_recipe
    from pixelspace.training.run import opened_run

    made = _recipe(recipe, data, settings)
    names = [one.name for one in made.stages]
    if stage is not None and stage not in names:
        raise UserError(f"--stage: no stage {stage!r}; {nearest(stage, names)}")
    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads must be at least 1, found {threads}")
        torch.set_num_threads(threads)
    is_run = (Path(recipe) / "recipe.json").is_file()
    run = Path(recipe) if is_run and out is None else out or Path("runs") / made.name
    chosen = pick_device(device)
    weights = None
    if start_from is not None:
        weights = _open_model(start_from, "cpu").backbone.state_dict()
    with opened_run(run, made, accept_changes=accept_changes):
        try:
            run_recipe(
                made,
                run,
                device=chosen,
                cache=_cache(),
                trackers=track,
                weights=weights,
                first=stage,
                progress=not quiet,
                say=lambda text: tqdm.write(text, file=sys.stderr),
            )
        except PixelspaceError:
            with suppress(OSError), (run / "error.log").open("a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
            raise
    print(f"trained: {run} (pixelspace sample {run})")


def sample(
    model: Positional[Path],
    *,
    n: Annotated[int, arg(aliases=("-n",))] = 16,
    out: Path = Path("samples"),
    size: tuple[int, ...] = (),
    label: tuple[str, ...] = (),
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 16,
    exact: bool = False,
    vae: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Draw images from a model and write them as PNG files, and all together as grid.png.

    Args:
        model: A run, stage, checkpoint or model folder, or a k-diffusion weights file.
        n: How many.
        out: The folder to write to.
        size: Side, or height and width, in pixels.
        label: Class name or number; one for all images, or one for each.
        steps: Solver steps; as the recipe says by default.
        sampler: The solver; as the recipe says by default.
        guidance: Scale of classifier-free guidance; as the recipe says by default.
        seed: Image i of a seed is always the same.
        batch: Images computed at once.
        exact: The same bits at any n, by computing full batches only.
        vae: Where the VAE of a model of latents is, if not where the recipe says.
        device: cpu, cuda, mps or auto.
        overwrite: Write into a folder that holds something already.
        quiet: No progress bar.
    """
    if len(size) > 2:
        raise UserError(f"--size: give a side, or height and width; found {len(size)} numbers")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give another --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out}: is not empty; give another --out or add --overwrite")
    from pixelspace.data.grid import grid_image, save_image

    opened = _open_model(model, device)
    if vae is not None:
        opened.use_vae(vae)
    labels = [int(one) if one.lstrip("-").isdecimal() else one for one in label]
    images = opened.sample(
        n,
        size=None if not size else size[0] if len(size) == 1 else (size[0], size[1]),
        label=None if not labels else labels[0] if len(labels) == 1 else labels,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        seed=seed,
        progress=not quiet,
        batch=batch,
        exact=exact,
    ).permute(0, 3, 1, 2)
    for i in range(n):
        save_image(grid_image(images[i : i + 1], 1, gap=0), out / f"{i:06d}.png")
    sheet = save_image(grid_image(images, columns=max(1, round(n**0.5))), out / "grid.png")
    print(f"{n} images: {sheet}")


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
        system: Whose weights they are: k-diffusion or maskdit.
        config: The original's own configuration (JSON), where the file carries none.
        weights: The averaged or the raw ones of a training checkpoint.
    """
    from pixelspace import api

    model = api.import_checkpoint(file, system=system, config=config, weights=weights, device="cpu")
    count = sum(parameter.numel() for parameter in model.backbone.parameters())
    print(f"{count:,} parameters: {model.save(out)}")


def show(
    recipe: Positional[str], *, settings: Settings = (), data: Path | None = None, json: bool = False, depth: int = 1
) -> None:
    """Print a recipe: its stages, their networks with parameter counts, GMACs and memory.

    Args:
        recipe: A recipe's name, a run's folder, a recipe.json, or file.py:function.
        settings: Settings to replace, by their dotted path.
        data: A folder of images, or of latents (`encode`), in place of the recipe's data.
        json: Print every setting as JSON instead.
        depth: How deep into the network to go.
    """
    import json as json_format

    from pixelspace.config import to_data
    from pixelspace.training.describe import describe

    made = _recipe(recipe, data, settings)
    print(json_format.dumps(to_data(made), indent=1) if json else describe(made, depth))


def prepare(folder: Positional[Path], *, max_bad_share: float = 0.1) -> None:
    """Read every image of a folder once: which are good, which are not and why.

    Args:
        folder: The folder of images.
        max_bad_share: The share of unreadable images from which on training refuses.
    """
    from pixelspace.data.index import load_or_build

    index = load_or_build(folder, _cache())
    print(index.summary())
    index.check(max_bad_share)


def encode(
    images: Positional[Path],
    out: Positional[Path],
    *,
    vae: Path,
    size: int = 256,
    flip: bool = False,
    half: bool = False,
    batch: int = 16,
    shard: int = 1024,
    workers: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Compute the latents of every image of a folder, to train on in place of the images; the same command goes on
    where it stopped, and `torchrun` shares the work out.

    Args:
        images: The folder of images.
        out: The folder to write to.
        vae: Stable Diffusion's autoencoder: autoencoder_kl.pth or a diffusers folder.
        size: Side in pixels; images are resized and cut at the centre as ADM's code does.
        flip: Latents of the mirrored images too, for training with flips.
        half: Keep float16, half the bytes.
        batch: Images read at once.
        shard: Images a file.
        workers: Processes that read images.
        device: cpu, cuda, mps or auto.
        quiet: No progress bar.
    """
    from pixelspace import dist
    from pixelspace.data.latents import encode_images
    from pixelspace.data.sources import Folder
    from pixelspace.interop.kl_vae import open_vae

    rank, world = dist.rank(), dist.world()
    chosen, codec = dist.pick_device(device), open_vae(vae)
    dataset = encode_images(
        Folder(str(images)).open(_cache()),
        out,
        codec,
        size=size,
        device=chosen,
        flip=flip,
        half=half,
        batch=batch,
        shard=shard,
        rank=rank,
        world=world,
        workers=workers,
        progress=not quiet and rank == 0,
    )
    if dataset is None:
        print(f"rank {rank} of {world}: its shards are done; {out} is complete when the others are")
        return
    shape = "x".join(map(str, dataset.encoding.shape))
    what = "images and their mirrored copies" if flip else "images"
    print(
        f"{len(dataset):,} {what} as {shape} moments, {dataset.bytes:,} bytes: {out} "
        f"(pixelspace train RECIPE --data {out} --set 'stages.*.codec.vae={vae}')"
    )


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


COMMANDS = {
    "train": train,
    "sample": sample,
    "show": show,
    "import": import_,
    "prepare": prepare,
    "encode": encode,
    "recipes": recipes,
    "demo": demo,
}


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _foreseen(error: Exception) -> PixelspaceError | None:
    """A fault of libraries below us that users can do something about, as one of ours."""
    if isinstance(error, PixelspaceError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return ResourceError(f"{error.filename or 'the disk'}: {error.strerror}")
    kind = type(error).__name__
    if kind in ("OutOfMemoryError", "MemoryError") or "not enough memory" in str(error):
        return ResourceError(f"out of memory: {_line(error)}; lower stages.0.micro or the batch")
    if kind == "ValidationError" and hasattr(error, "errors"):
        first = error.errors()[0]  # type: ignore[attr-defined]
        return UserError(str(first.get("ctx", {}).get("error", first["msg"])))
    return None


def _keep_traceback() -> str:
    """Writes the traceback under way into a file and says where; where none can be written, onto the terminal."""
    path = Path("pixelspace-error.log").resolve()
    try:
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as error:
        traceback.print_exc()
        return f"above: {path}: {error.strerror}"
    return f"in {path}"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    # Threads that spin while they wait make a step 10 times slower as soon as something else runs on the machine; this
    # costs 10 % on a quiet one. It must be set before torch starts its threads.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="pixelspace", description="Diffusion models that make images directly.", args=arguments
        )
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
        return 0
    except Exception as error:  # the only one: what reaches the terminal is a line and an exit code, whatever it was
        foreseen = _foreseen(error)
        if foreseen is not None:
            _say(f"error: {_line(foreseen)}")
            return foreseen.exit_code
        where = _keep_traceback()
        _say(f"error: {type(error).__name__}: {_line(error)} (a fault of pixelspace; the traceback is {where})")
        return 70
    return 0


def run() -> None:
    """The entry point of the `pixelspace` script."""
    sys.exit(main())
