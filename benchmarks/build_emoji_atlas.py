"""Builds the packaged emoji set: pixelspace/data/emoji/atlas.webp and emoji.json.

    python benchmarks/build_emoji_atlas.py WORK_FOLDER

Takes Microsoft's Fluent 3-D emoji from npm, over white at 64 px, in one sheet of 1,500, group by group. Left out are
what Microsoft has not put under its MIT licence (national flags, families and couples, and a few it names for their
trademarks), the few other flags, skin tones, and most repeats of a person as a man and a woman.
"""

import json
import re
import sys
from hashlib import sha256
from pathlib import Path

from fetch_data import FLUENT_3D, Emoji, emoji, npm, plain, square
from PIL import Image

PUBLISHED = "@iconify-json/fluent-emoji-flat@1.2.6"  # made of Microsoft's repository, so it lists what that holds
# "Not all emojis can be open-sourced (because of trademarks)": paperclip, video game, technologists (its README).
TRADEMARKED = re.compile(r"^1f4ce$|^1f3ae$|^1f(468|469|9d1)-200d-1f4bb$")
SIDE, COLUMNS, COUNT = 64, 40, 1500
GROUPS = ("smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols")


def _neutral(code: str) -> str:
    """The sequence of the same figure as a person."""
    return re.sub(r"-200d-264[02]$", "", re.sub(r"^1f46[89](?=-200d)", "1f9d1", code))


def chosen(work: Path) -> list[Emoji]:
    """The emoji of the set, in order of group and code: all smileys, all distinct figures, and repeats to fill up."""
    published = {plain(code) for code in json.loads((npm(PUBLISHED, work) / "chars.json").read_text())}
    offered = [
        one
        for one in emoji(FLUENT_3D, work)
        if one.group in GROUPS and one.code in published and not TRADEMARKED.search(one.code)
    ]
    codes = {one.code for one in offered}
    repeats = [one for one in offered if _neutral(one.code) != one.code and _neutral(one.code) in codes]
    kept = [one for one in offered if one not in repeats and one.path.stem != "26a7"]  # the same as 26a7-fe0f
    repeats.sort(key=lambda one: sha256(one.path.stem.encode()).digest())
    kept += repeats[: COUNT - len(kept)]
    return sorted(kept, key=lambda one: (GROUPS.index(one.group), one.path.stem))


def main(work: Path) -> None:
    entries = chosen(work)
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(entries) // COLUMNS) * SIDE), "white")
    for i, one in enumerate(entries):
        with Image.open(one.path) as image:
            sheet.paste(square(image, SIDE), (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    folder = Path(__file__).parents[1] / "pixelspace/data/emoji"
    sheet.save(folder / "atlas.webp", quality=90, method=6)
    described = {"side": SIDE, "columns": COLUMNS, "emoji": [[one.group, one.caption] for one in entries]}
    (folder / "emoji.json").write_text(
        json.dumps(described, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
    )
    counts = {group: sum(one.group == group for one in entries) for group in GROUPS}
    print(f"{len(entries)} emoji, {(folder / 'atlas.webp').stat().st_size:,} bytes: {counts}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
