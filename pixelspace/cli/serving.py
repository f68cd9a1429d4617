"""The command that shows a model in the browser: serve."""

import os
import sys
from pathlib import Path

from tyro.conf import Positional

from pixelspace.errors import UserError


def serve(
    models: Positional[tuple[Path, ...]],
    *,
    checkpoints: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    public: bool = False,
    seconds: float = 120.0,
    encoder: Path | None = None,
    vae: Path | None = None,
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Draw with a model in the browser: a page on this machine, until Ctrl-C.

    Args:
        models: Runs, stages, checkpoints, model folders, k-diffusion weights files or hf://user/name; of several the
            page compares.
        checkpoints: Offer every kept checkpoint of a run's last stage.
        host: The address to listen at.
        port: Where; 0 takes any free one.
        public: Let others use the page, whoever has the link that is printed: with the token in PIXELSPACE_TOKEN, or a
            random one.
        seconds: How long one drawing may take.
        encoder: Where the text encoder is, if not where the recipe says.
        vae: Where the VAE of models of latents is, if not where the recipe says.
        threads: Threads on the CPU; as many as the machine has by default.
        device: cpu, cuda, mps or auto.
    """
    from pixelspace.serving import guard  # first: it says which packages are missing

    where = guard.place(host, port, public, os.environ.get("PIXELSPACE_TOKEN") if public else None)
    if not 1 <= seconds <= 86_400:
        raise UserError(f"--seconds must be from 1 to 86,400, found {seconds:g}")
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError(f"--threads must be from 1 to 1,024, found {threads}")
    import torch

    from pixelspace.api import open_model
    from pixelspace.model import Model
    from pixelspace.serving.drawer import page
    from pixelspace.serving.offer import Offer, checkpoints_of

    if threads is not None:
        torch.set_num_threads(threads)

    def opened(path: Path) -> Model:
        model = open_model(path, device)
        if vae is not None:
            model.use_vae(vae)
        if encoder is not None:
            model.use_text(encoder)
        return model

    paths = [one for path in models for one in (checkpoints_of(path) if checkpoints else [path])]
    offer = Offer.opened(paths, opened)
    for name, one in offer.models.items():
        told, why = one.missing
        if told:
            print(f"warning: {name}: {told}: {why}", file=sys.stderr, flush=True)
    guard.run(page(offer, seconds, where.token), where, lambda line: print(line, flush=True))
