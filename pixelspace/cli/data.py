"""Commands about data: prepare, encode, embed."""

import json
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from pixelspace.cli.given import cache_folder
from pixelspace.errors import UserError

if TYPE_CHECKING:
    from pixelspace.data.dataset import Dataset, Source


def _set(source: "Source", given: dict[str, Any]) -> "Source":
    """The source with the fields that are `given`."""
    for name in given:
        if name not in {field.name for field in fields(source)}:  # type: ignore[arg-type]
            raise UserError(f"--{name.replace('_', '-')} is not for {source.kind}")
    return replace(source, **given)  # type: ignore[type-var]


def prepare(
    path: Positional[str],
    *,
    out: Path | None = None,
    max_bad_share: float | None = None,
    workers: int | None = None,
    verify: bool = False,
    text_key: str | None = None,
    cache_gib: float | None = None,
    frames: int | None = None,
    stride: int | None = None,
) -> None:
    """Read every sample of a data set once: which are good, which are not and why. The same command goes on where it
    stopped, and `torchrun` shares tar shards and Parquet files out.

    Args:
        path: A folder of images or clips; tar shards or Parquet files: a folder of them, a pattern
            ('cc12m/{00000..01242}.tar') or a URL; COCO's captions; a folder of latents.
        out: The folder to keep the index of tar shards in, to train on in place of them; the cache by default.
        max_bad_share: The share of unreadable samples from which on training refuses; a tenth by default.
        workers: Processes that read tar shards and Parquet files; as many as there are cores by default.
        verify: Hash all images of tar shards and Parquet files again, and compare.
        text_key: The key of each .json in tar shards that has the caption or captions, by default it is the .txt; or
            the column of Parquet files.
        cache_gib: How much of files that lie elsewhere is kept on disk; 20 by default.
        frames: Of a clip; 16 by default.
        stride: Of so many frames of a clip one is taken; 1 by default.
    """
    from pixelspace import dist
    from pixelspace.config import to_data
    from pixelspace.data.detect import source_of
    from pixelspace.data.preparation import Preparation
    from pixelspace.data.remote import is_url

    rank, world = dist.rank(), dist.world()
    how = Preparation(print, out, workers, verify, rank, world, progress=rank == 0)
    named = {"max_bad_share": max_bad_share, "text_key": text_key, "cache_gib": cache_gib}
    given = {name: one for name, one in {**named, "frames": frames, "stride": stride}.items() if one is not None}
    _set(source_of(path), given).prepare(cache_folder(), how)
    if given and out is None and rank == 0:
        there = source_of(path if is_url(path) else str(Path(path).resolve()))
        setting = "stages.*.data.source=" + json.dumps(to_data(_set(there, given)))
        print(f"pixelspace train RECIPE --set {shlex.quote(setting)}")


def _opened(path: str) -> "Dataset":
    from pixelspace.data.detect import source_of

    return source_of(path).open(cache_folder())


def encode(
    images: Positional[str],
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
    """Compute the latents of every image of a data set, to train on in place of the images; the same command goes on
    where it stopped, and `torchrun` shares the work out.

    Args:
        images: The images: what `prepare` takes.
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
    from pixelspace.interop.kl_vae import open_vae

    rank, world = dist.rank(), dist.world()
    chosen, codec = dist.pick_device(device), open_vae(vae)
    dataset = encode_images(
        _opened(images),
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


def embed(
    data: Positional[str],
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
        data: The images or clips with captions: what `prepare` takes.
        out: The folder to write to.
        encoder: minilm, bytes, the folder of a text encoder in Hugging Face's layout, or its name on the hub.
        length: Tokens at which a caption is cut (minilm 64, bytes 96, others 128).
        batch: Captions read at once.
        max_gib: Nothing is written if the embeddings would take more GiB than this.
        device: cpu, cuda, mps or auto.
        quiet: No progress bar.
    """
    from pixelspace import dist
    from pixelspace.errors import UserError
    from pixelspace.text.cache import embed_captions
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
    print(
        f"pixelspace train RECIPE --data {shlex.quote(data)} --text {shlex.quote(str(out))}  "
        f"# a network that reads text of width {reader.width}, pooled {reader.pooled_width}"
    )
