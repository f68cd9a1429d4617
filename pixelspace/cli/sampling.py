"""The command that draws: sample."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from pixelspace.errors import UserError


def _identity(model: Any) -> str:
    """Of a model's weights and of all else that decides what it draws."""
    from pixelspace.config import to_data

    return hashlib.sha256(json.dumps([model.sha256, to_data(model.config)]).encode()).hexdigest()[:16]


def sample(
    model: Positional[Path],
    *,
    n: Annotated[int | None, arg(aliases=("-n",))] = None,
    out: Path = Path("samples"),
    size: tuple[int, ...] = (),
    label: tuple[str, ...] = (),
    text: Annotated[tuple[str, ...], UseAppendAction] = (),
    text_file: Path | None = None,
    negative: Annotated[tuple[str, ...], UseAppendAction] = (),
    encoder: Path | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 16,
    exact: bool = False,
    levels: bool = False,
    fps: float | None = None,
    vae: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Draw images from a model and write them as PNG files, clips as animated WebP, and together as grid.png; the same
    command goes on where it was killed, and `torchrun` shares the work out.

    Args:
        model: A run, stage, checkpoint or model folder, a k-diffusion weights file or hf://user/name.
        n: How many; by default as many as there are prompts, or 16.
        out: The folder to write to.
        size: Side, or height and width, in pixels.
        label: Class name or number; one for all images, or one for each.
        text: A prompt; may be given again. Image i is of prompt i modulo their number.
        text_file: More prompts: a .txt with one a line, or .json, .jsonl, .csv.
        negative: What guidance leads away from; may be given again.
        encoder: Where the text encoder is, if not where the recipe says.
        steps: Solver steps; as the recipe says by default.
        sampler: The solver; as the recipe says by default.
        guidance: Scale of classifier-free guidance; as the recipe says by default.
        seed: Image i of a seed is always the same.
        batch: Images computed at once.
        exact: The same bits at any n, by computing full batches only.
        levels: Write the coarser levels of a pyramid, too, as 000000_64.png and so on, by their size.
        fps: Frames of a clip a second; 8 by default.
        vae: Where the VAE of a model of latents is, if not where the recipe says.
        device: cpu, cuda, mps or auto.
        overwrite: Write into a folder that holds something already.
        quiet: No progress bar.
    """
    from pixelspace import dist
    from pixelspace.data.drawn import Asked, Drawn, require_room

    if len(size) > 2:
        raise UserError(f"--size: give a side, or height and width; found {len(size)} numbers")
    if fps is not None and not 0.1 <= fps <= 1000:
        raise UserError(f"--fps must be from 0.1 to 1000, found {fps}")
    rank, world = dist.rank(), dist.world()
    require_room(out, overwrite=overwrite, shared=world > 1)
    from pixelspace.api import open_model
    from pixelspace.evaluation.prompts import read_prompts
    from pixelspace.model import MAX_IMAGES

    prompts = [*text, *(read_prompts(text_file) if text_file is not None else ())]
    opened = open_model(model, device)
    frames = opened.config.backbone.tiles**2
    if fps is not None and frames == 1:
        raise UserError("--fps: this model draws images, not clips; leave it out")
    if vae is not None:
        opened.use_vae(vae)
    if encoder is not None:
        opened.use_text(encoder)
    labels = [int(one) if one.lstrip("-").isdecimal() else one for one in label]
    count = n if n is not None else len(prompts) or 16
    if not 1 <= count <= MAX_IMAGES:
        raise UserError(f"-n must be from 1 to {MAX_IMAGES:,}, found {count}")
    own, large = opened.config.size, (size * 2)[:2] or opened.config.size
    if rank == 0 and any(4 * side > 5 * trained for side, trained in zip(large, own, strict=True)):
        said = f"{large[0]}x{large[1]} is more than the {own[0]}x{own[1]} that this model was trained at"
        print(f"note: {said}: expect washed out or repeated things", file=sys.stderr, flush=True)
    plan = opened.plan(steps, sampler, guidance)
    asked = Asked(
        model=_identity(opened),
        count=count,
        frames=frames,
        size=size,
        label=label,
        text=tuple(prompts),
        negative=negative,
        steps=plan.steps,
        sampler=plan.solver,
        guidance=plan.guidance,
        seed=seed,
        batch=batch if exact else 0,
        levels=levels,
        fps=fps or 8,
    )
    given: dict[str, Any] = {
        "n": count,
        "size": None if not size else size[0] if len(size) == 1 else (size[0], size[1]),
        "label": None if not labels else labels[0] if len(labels) == 1 else labels,
        "text": prompts or None,
        "negative": negative or None,
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
        "seed": seed,
    }
    name = model.resolve().name
    drawn = Drawn(out, asked, lambda number: opened.settings(number, name, **given), overwrite=overwrite)
    opened.sample(
        **given,
        progress=not quiet and rank == 0,
        batch=batch,
        exact=exact,
        only=[number for number in drawn.missing() if number % world == rank],
        each=drawn.put,
        every_level=levels,
    )
    what = "clips" if frames > 1 else "images"
    if left := drawn.missing():
        print(
            f"rank {rank} of {world}: its share is done; {out} is complete when the others are; "
            f"of {count} {what} {len(left)} are missing yet, {left[0]:06d} first"
        )
        return
    print(f"{count} {what}: {drawn.finish(shared=world > 1)}")
