"""Commands about data: prepare, encode, embed."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from pixelspace.cli.given import cache_folder

if TYPE_CHECKING:
    from pixelspace.data.dataset import Dataset


def prepare(folder: Positional[Path], *, max_bad_share: float = 0.1) -> None:
    """Read every image of a folder once: which are good, which are not and why.

    Args:
        folder: The folder of images.
        max_bad_share: The share of unreadable images from which on training refuses.
    """
    from pixelspace.data.index import load_or_build

    index = load_or_build(folder, cache_folder())
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
    from pixelspace.data.folder import Folder
    from pixelspace.data.latents import encode_images
    from pixelspace.interop.kl_vae import open_vae

    rank, world = dist.rank(), dist.world()
    chosen, codec = dist.pick_device(device), open_vae(vae)
    dataset = encode_images(
        Folder(str(images)).open(cache_folder()),
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


def _opened(data: Path) -> "Dataset":
    from pixelspace.data.folder import Folder

    return Folder(str(data)).open(cache_folder())


def embed(
    data: Positional[Path],
    out: Positional[Path],
    *,
    encoder: str = "minilm",
    length: int | None = None,
    batch: int = 256,
    max_gib: float = 32.0,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Compute what a text encoder makes of every caption of a data set, to train on without it; the same command goes
    on where it stopped, and `torchrun` shares the work out.

    Args:
        data: The images with captions.
        out: The folder to write to.
        encoder: minilm, bytes, the folder of a text encoder in Hugging Face's layout, or its name on the hub.
        length: Tokens at which a caption is cut (minilm 64, bytes 96, others 128).
        batch: Captions read at once.
        max_gib: Nothing is written if the embeddings would take more GiB than this.
        device: cpu, cuda, mps or auto.
        quiet: No progress bar.
    """
    from pixelspace import dist
    from pixelspace.config import to_data
    from pixelspace.errors import UserError
    from pixelspace.text.cache import Cached, embed_captions
    from pixelspace.text.named import encoder_of

    if not 0 < max_gib < 2**20:
        raise UserError(f"--max-gib must be above 0 and below 2^20, found {max_gib}")
    rank, world = dist.rank(), dist.world()
    chosen, by, dataset = dist.pick_device(device), encoder_of(encoder, length), _opened(data)
    done = embed_captions(
        dataset.texts,
        len(dataset),
        out,
        by,
        device=chosen,
        batch=batch,
        max_bytes=int(max_gib * 2**30),
        rank=rank,
        world=world,
        progress=not quiet and rank == 0,
    )
    if (reader := done.reader) is None:
        print(f"rank {rank} of {world}: its parts are done; {out} is complete when the others are")
        return
    print(
        f"{done.captions:,} captions, {done.distinct:,} distinct ones with the empty one, {reader.bytes:,} bytes "
        f"({reader.bytes / done.distinct:,.0f} a caption): {out}"
    )
    print(f"longer than {by.length} tokens and cut there: {reader.cut:,} ({reader.cut / done.distinct:.2%})")
    setting = shlex.quote("stages.*.text=" + json.dumps(to_data(Cached(by.direct, str(out.resolve())))))
    print(
        f"pixelspace train RECIPE --data {shlex.quote(str(data))} --set {setting}  "
        f"# a network that reads text of width {reader.width}, pooled {reader.pooled_width}"
    )
