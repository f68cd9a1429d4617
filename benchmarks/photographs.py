"""Writes tar shards of photographs as img2dataset writes them: NNNNNNNNN.jpg, .txt and .json by turns.

    python benchmarks/photographs.py OUT [--images 1200] [--shards 6] [--work downloads]

The photographs are cuts of 273 landscapes (720 x 360) and 19 wallpapers (up to 25 megapixels) of three Debian packages,
brought to one of six usual sizes from 640 x 480 to 1024 x 768, as JPEG of quality 90: no two files are the same.
"""

import argparse
import io
import json
import random
import tarfile
from functools import cache
from pathlib import Path

from fetch_data import LANDSCAPES, deb
from PIL import Image

WALLPAPERS = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
SIZES = ((640, 480), (800, 600), (1024, 768), (1024, 683), (768, 1024), (600, 800))
QUALITY = 90


@cache
def _photograph(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    image.thumbnail((3000, 3000))
    return image


def photographs(work: Path) -> tuple[list[Path], list[Path]]:
    """Landscapes and wallpapers."""
    land = sorted((deb(LANDSCAPES, work) / "usr/share/games/endless-sky/images/land").glob("*.jpg"))
    folders = [deb(package, work) / "usr/share/backgrounds" for package in WALLPAPERS]
    return land, [path for folder in folders for path in sorted(folder.glob("*.jpg")) if not path.is_symlink()]


def cut(path: Path, size: tuple[int, int], dice: random.Random) -> bytes:
    """A JPEG of a random part: 0.6 to 1 of the longest sides that there are at the size's aspect."""
    image, (width, height) = _photograph(path), size
    scale = min(image.width / width, image.height / height) * dice.uniform(0.6, 1)
    x, y = dice.uniform(0, image.width - width * scale), dice.uniform(0, image.height - height * scale)
    box = (x, y, min(image.width, x + width * scale), min(image.height, y + height * scale))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS, box=box).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write(out: Path, images: int, shards: int, work: Path) -> list[Path]:
    """The shards, written if they are not there."""
    paths = [out / f"{shard:05d}.tar" for shard in range(shards)]
    if all(path.exists() for path in paths):
        return paths
    out.mkdir(parents=True, exist_ok=True)
    kinds, dice = photographs(work), random.Random(0)
    for shard, path in enumerate(paths):
        partial = path.with_suffix(".part")
        with tarfile.open(partial, "w") as tar:
            for i in range(images // shards):
                source, (width, height) = dice.choice(dice.choice(kinds)), dice.choice(SIZES)
                key, caption = f"{shard:05d}{i:04d}", source.stem.replace("_", " ")
                about = json.dumps({"caption": caption, "key": key, "width": width, "height": height})
                files = {"jpg": cut(source, (width, height), dice), "txt": caption.encode(), "json": about.encode()}
                for suffix, data in files.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        partial.rename(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--work", type=Path, default=Path("downloads"), help="where unpacked packages are kept")
    given = parser.parse_args()
    paths = write(given.out, given.images, given.shards, given.work.resolve())
    print(f"{len(paths)} shards, {sum(path.stat().st_size for path in paths):,} bytes")


if __name__ == "__main__":
    main()
