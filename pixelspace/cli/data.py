"""Commands about data: prepare, encode."""

from pathlib import Path

from tyro.conf import Positional

from pixelspace.cli.given import cache_folder


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
