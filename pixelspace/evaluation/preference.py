"""A page that asks people which of two images they prefer, as the human studies of text-to-image papers do.

Side by side, with "no preference" as an answer, since such studies report wins and losses that do not add up to 100 %
(44.0 % against 21.4 % in Vasconcelos et al. 2024). The page is static and works from a folder without a server; it
says nothing of where an image is from. `votes` reads what judges send back.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from pixelspace.config import to_data, value
from pixelspace.data.decode import shown
from pixelspace.errors import DataError, ResourceError, UserError
from pixelspace.evaluation.pairs import captions_of, opened, paired
from pixelspace.random import Rng, permuted

INDEX, KEY, IMAGES = "index.html", "key.json", "images"


@value
class Pair:
    """Two images of one name; `swapped` if the page shows the right folder's on its left."""

    name: str
    swapped: bool


@value
class Key:
    """What judges must not know: which side is which, of the pairs in the order shown."""

    page: str
    question: str
    seed: int
    left: str
    right: str
    pairs: tuple[Pair, ...]

    def ids(self) -> list[str]:
        """What the page and its answers call each pair."""
        return [_pair_id(self.page, number) for number in range(1, len(self.pairs) + 1)]


def _pair_id(page: str, number: int) -> str:
    return f"{page}-{number:04d}"


def _arranged(n: int, seed: int) -> tuple[list[int], list[bool]]:
    """The order in which pairs are shown, and which of the places have their sides swapped: half of them."""
    rng = Rng(seed)
    swaps = (n + (rng.key("preference", "odd") & 1)) // 2
    order, swap = rng.key("preference", "order"), rng.key("preference", "swap")
    return [permuted(k, n, order) for k in range(n)], [permuted(k, n, swap) < swaps for k in range(n)]


def _embedded(data: Any) -> str:
    """JSON that can neither end nor open anything in the HTML around it: plain ASCII without <, > and &."""
    text = json.dumps(data, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it at the end, or is deleted."""
    out = out.resolve()
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists already, and is not overwritten; give another name")
        draft.mkdir(parents=True)
        yield draft
        draft.rename(out)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written: {error}; free some space there or write elsewhere") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _save(image: Image.Image, path: Path, digest: Any) -> None:
    digest.update(f"{image.size}".encode() + image.tobytes())
    image.save(path, format="PNG", compress_level=1)  # at 1024 px 0.06 s rather than 0.15 s, 13 to 33 % more bytes


def write_preference_page(
    left: Path,
    right: Path,
    out: Path,
    *,
    prompts: Mapping[str, str] | Path | None = None,
    seed: int = 0,
    question: str = "Which image do you prefer?",
) -> Path:
    """Writes the new folder `out` with the page that shows the images of `left` and `right` in pairs; returns its
    index.html.

    `left` and `right` are folders, at any depth, or archives; images are paired by relative name, whatever the
    suffix. Hidden files, files that are no images and the sheet `grid.png` are no pairs. `prompts` are captions by
    name, with or without suffix, or the path of such a JSON object, or of captions in order of names.

    Order and sides follow from `seed`, half of the pairs swapped. Images are stored anew as PNG, so that neither name,
    format nor metadata tells where one is from. `key.json` does: give judges everything else in the folder.

    Raises:
        UserError: `out` exists and is not empty, or one folder on both sides.
        DataError: images without partner, of unequal size or unreadable; captions that are missing or no text.
        ResourceError: `out` cannot be written. Nothing is left there then.
    """
    left, right, out = Path(left), Path(right), Path(out)
    if left.resolve() == right.resolve():
        raise UserError(f"{left}: stands on both sides; give two sets of images")
    if not question.strip():
        raise UserError("question: is empty; ask something")
    lefts, rights = opened(left), opened(right)
    with _published(out) as draft:
        names = paired(left, lefts, right, rights)
        captions = captions_of(prompts, names)
        order, swaps = _arranged(len(names), seed)
        digest = hashlib.sha256(json.dumps([question, seed, names, captions]).encode())
        (draft / IMAGES).mkdir()
        shown_pairs = []
        for number, (k, swapped) in enumerate(zip(order, swaps, strict=True), 1):
            images = lefts[names[k]](), rights[names[k]]()
            if images[0].size != images[1].size:
                sizes = " and ".join("{}x{}".format(*image.size) for image in images)
                raise DataError(f"{shown(names[k])}: {sizes}, which would tell them apart; resize one set first")
            ends = [f"{IMAGES}/{number:04d}-{end}.png" for end in "ab"]
            for image, end in zip(images, reversed(ends) if swapped else ends, strict=True):
                _save(image, draft / end, digest)
            width, height = images[0].size
            shown_pairs.append({"images": ends, "width": width, "height": height, "caption": captions[k]})
        page = digest.hexdigest()[:12]
        for number, pair in enumerate(shown_pairs, 1):
            pair["id"] = _pair_id(page, number)
        template = files("pixelspace.evaluation").joinpath("preference.html").read_text(encoding="utf-8")
        study = _embedded({"page": page, "question": question, "pairs": shown_pairs})
        (draft / INDEX).write_text(template.replace("{{study}}", study), encoding="utf-8")
        pairs = tuple(Pair(shown(names[k]), swapped) for k, swapped in zip(order, swaps, strict=True))
        key = Key(page, question, seed, shown(str(left)), shown(str(right)), pairs)
        (draft / KEY).write_text(json.dumps(to_data(key), indent=1), encoding="utf-8")
    return out / INDEX
