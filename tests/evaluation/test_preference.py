"""The page for human preference: what judges can and cannot see, and what is refused. Its answers: test_votes.py."""

import json
import re
import zipfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageFilter, PngImagePlugin

from pixelspace.data.emoji import Emoji
from pixelspace.data.grid import grid_image
from pixelspace.errors import DataError, ResourceError, UserError
from pixelspace.evaluation.preference import _arranged, write_preference_page

N = 5


def emoji(i: int) -> Image.Image:
    return grid_image(Emoji().open()[i].image[None], 1, gap=0)


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> tuple[Path, Path]:
    """Emoji on the left, blurred on the right; in folders, under other suffixes and with telling metadata."""
    left, right = (tmp_path_factory.mktemp(name) for name in ("sharp-model", "soft-model"))
    info = PngImagePlugin.PngInfo()
    info.add_text("model", "sharp-model")
    for i in range(N):
        (left / "x").mkdir(exist_ok=True), (right / "x").mkdir(exist_ok=True)
        emoji(i).save(left / f"x/{i:06d}.png", pnginfo=info)
        emoji(i).filter(ImageFilter.BoxBlur(1)).save(right / f"x/{i:06d}.bmp")
    return left, right


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.urls, self.study, self._in = Counter(), [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self._in = ("id", "study") in attrs
        self.urls += [value for name, value in attrs if name in ("src", "href", "action", "data", "poster", "srcset")]

    def handle_data(self, data):
        self.study += data if self._in else ""

    def handle_endtag(self, tag):
        self._in = False


def written(index: Path) -> tuple[Page, dict, dict]:
    page = Page(index.read_text(encoding="utf-8"))
    return page, json.loads(page.study), json.loads((index.parent / "key.json").read_text())


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def refused(kind, message, left, right, out, **settings):
    with pytest.raises(kind, match=message):
        write_preference_page(left, right, out, **settings)
    assert not out.exists() or not any(out.iterdir())
    assert [path for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_the_key_says_which_image_stands_where(sides, tmp_path):
    _, study, key = written(write_preference_page(*sides, tmp_path / "page"))
    assert sorted(pair["name"] for pair in key["pairs"]) == [f"x/{i:06d}" for i in range(N)]
    for shown, pair in zip(study["pairs"], key["pairs"], strict=True):
        truth = pixels(sides[0] / f"{pair['name']}.png"), pixels(sides[1] / f"{pair['name']}.bmp")
        seen = tuple(pixels(tmp_path / "page" / name) for name in shown["images"])
        assert seen == (truth[::-1] if pair["swapped"] else truth)
        assert (shown["width"], shown["height"]) == (64, 64)


def test_nothing_that_judges_get_tells_the_sides_apart(sides, tmp_path):
    index = write_preference_page(*sides, tmp_path / "page")
    _, study, _ = written(index)
    text = index.read_text()
    assert not any(word in text for word in ("sharp-model", "soft-model", "swapped", "key.json", "000001"))
    assert set(study) == {"page", "question", "pairs"}
    assert all(set(pair) == {"id", "images", "width", "height", "caption"} for pair in study["pairs"])
    there = sorted(path.name for path in (tmp_path / "page" / "images").iterdir())
    assert there == sorted(f"{i:04d}-{end}.png" for i in range(1, N + 1) for end in "ab")
    for path in (tmp_path / "page" / "images").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG" and image.info == {}


def test_the_page_asks_for_nothing_outside_its_folder(sides, tmp_path):
    index = write_preference_page(*sides, tmp_path / "page")
    assert written(index)[0].urls == []
    assert re.findall(r"https?:|//[a-z]|@import|url\(", index.read_text().replace("// ", "")) == []
    assert "default-src 'none'" in index.read_text()


def test_a_seed_is_a_page_and_another_seed_another(sides, tmp_path):
    def files(name, seed):
        folder = write_preference_page(*sides, tmp_path / name, seed=seed).parent
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    first, again, other = files("a", 1), files("b", 1), files("c", 2)
    assert first == again
    assert first[Path("index.html")] != other[Path("index.html")]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_each_pair_is_shown_once_and_half_are_swapped(n):
    order, swaps = _arranged(n, seed=5)
    assert sorted(order) == list(range(n))
    assert sum(swaps) in (n // 2, (n + 1) // 2)


def test_over_seeds_every_pair_is_swapped_half_the_time_and_stands_anywhere():
    n, seeds = 7, 700
    swapped, first = Counter(), Counter()
    for seed in range(seeds):
        order, swaps = _arranged(n, seed)
        swapped.update(k for k, swap in zip(order, swaps, strict=True) if swap)
        first[order[0]] += 1
    # Five standard deviations of a fair coin and of a fair seven-sided die.
    assert all(abs(swapped[k] - seeds / 2) < 5 * (seeds / 4) ** 0.5 for k in range(n))
    assert all(abs(first[k] - seeds / n) < 5 * (seeds * 6 / 49) ** 0.5 for k in range(n))


def test_exchanging_the_sides_shows_each_pair_mirrored(sides, tmp_path):
    _, study, key = written(write_preference_page(*sides, tmp_path / "a"))
    _, turned, turned_key = written(write_preference_page(*reversed(sides), tmp_path / "b"))
    assert turned_key["pairs"] == key["pairs"] and turned["page"] != study["page"]
    for one, other in zip(study["pairs"], turned["pairs"], strict=True):
        a, b = one["images"]
        assert pixels(tmp_path / "a" / a) == pixels(tmp_path / "b" / other["images"][1])
        assert pixels(tmp_path / "a" / b) == pixels(tmp_path / "b" / other["images"][0])


HOSTILE = "</script><script>alert(1)</script><!-- <script> \u2028\u2029 & \" ' \\ {{study}} \ud800 \0 اب"


def test_captions_and_question_come_through_unchanged_and_cannot_leave_their_place(sides, tmp_path):
    plain = written(write_preference_page(*sides, tmp_path / "plain"))[0]
    captions = {f"x/{i:06d}.png": f"{HOSTILE}{i}" for i in range(N)}
    index = write_preference_page(*sides, tmp_path / "page", prompts=captions, question=HOSTILE)
    page, study, key = written(index)
    assert page.tags == plain.tags
    assert study["question"] == HOSTILE
    for shown, pair in zip(study["pairs"], key["pairs"], strict=True):
        assert shown["caption"] == captions[f"{pair['name']}.png"]
    line = next(line for line in index.read_bytes().splitlines() if b'id="study"' in line)
    data = line.partition(b">")[2].removesuffix(b"</script>")
    assert data.isascii() and not set(b"<>&") & set(data)


def test_zip_archives_and_folders_give_the_same_page(sides, tmp_path):
    for side, name in zip(sides, ("l.zip", "r.zip"), strict=True):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in sorted(side.rglob("*"), reverse=True):
                archive.write(path, path.relative_to(side))
            archive.writestr("__MACOSX/._000000.png", b"not an image")
            archive.writestr("notes.txt", "not an image either")
    folder = write_preference_page(*sides, tmp_path / "a").read_bytes()
    assert write_preference_page(tmp_path / "l.zip", tmp_path / "r.zip", tmp_path / "b").read_bytes() == folder


def test_the_sheet_that_sample_writes_is_no_pair(sides, tmp_path):
    for name in ("l", "r"):
        (tmp_path / name).mkdir()
        for file in ("000000.png", "grid.png", ".hidden.png"):
            emoji(len(name)).save(tmp_path / name / file)
    _, study, key = written(write_preference_page(tmp_path / "l", tmp_path / "r", tmp_path / "page"))
    assert [pair["name"] for pair in key["pairs"]] == ["000000"] and len(study["pairs"]) == 1


@pytest.mark.parametrize("name", ["captions.json", "captions.txt"])
def test_captions_come_from_a_file(sides, tmp_path, name):
    texts = [f"caption {i} é" for i in range(N)]
    table = {f"x/{i:06d}": text for i, text in enumerate(texts)} | {"of-another": "image"}
    text = json.dumps(table) if name.endswith("json") else "\r\n".join(texts) + "\r\n"
    (tmp_path / name).write_bytes(text.encode())
    _, study, key = written(write_preference_page(*sides, tmp_path / "page", prompts=tmp_path / name))
    for shown, pair in zip(study["pairs"], key["pairs"], strict=True):
        assert shown["caption"] == table[pair["name"]]


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ('{"x/000000": "one"}', "json", r"no caption for 4 of 5 pairs: x/000001, x/000002, x/000003, x/000004"),
        ('["one"]', "json", "1 captions for 5 pairs; expected one for each"),
        ('{"x/000000": 3}', "json", "x/000000: expected text, found 3"),
        ('{"x/000000": "a", "x/000000.png": "b"}', "json", "two captions for x/000000"),
        ('{"a": "b", "a": "c"}', "json", "the key 'a' stands twice"),
        ("one\ntwo\n", "txt", "2 captions for 5 pairs"),
        ("\udcff", "txt", "not UTF-8 at byte 0"),
    ],
)
def test_captions_that_cannot_be_meant_are_refused(sides, tmp_path, text, suffix, message):
    path = tmp_path / f"captions.{suffix}"
    path.write_bytes(text.encode(errors="surrogateescape"))
    refused((DataError, UserError), message, *sides, tmp_path / "page", prompts=path)


def test_images_without_a_partner_are_listed_by_side(sides, tmp_path):
    other = tmp_path / "other"
    for name in ("x/000000.png", "x/000001.png", "x/000002.png", "x/000004.png", "new.png"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        emoji(0).save(other / name)
    message = rf"1 only in {sides[0]} \(x/000003\); 1 only in {other} \(new\)"
    refused(DataError, message, sides[0], other, tmp_path / "page")


def other_side(tmp_path: Path, data: bytes | None = None, **names: Image.Image) -> tuple[Path, Path]:
    for side in ("l", "r"):
        (tmp_path / side).mkdir()
        emoji(0).save(tmp_path / side / "a.png")
        emoji(1).save(tmp_path / side / "b.png")
    for name, image in names.items():
        image.save(tmp_path / "r" / name.replace("_", "."), format="PNG")
    if data is not None:
        (tmp_path / "r" / "b.png").write_bytes(data)
    return tmp_path / "l", tmp_path / "r"


def test_a_pair_of_two_sizes_is_refused(tmp_path):
    sides = other_side(tmp_path, b_png=emoji(1).resize((64, 65)))
    refused(DataError, "b: 64x64 and 64x65, which would tell them apart", *sides, tmp_path / "page")


def test_two_images_of_one_name_are_refused(tmp_path):
    refused(DataError, "a is there as", *other_side(tmp_path, a_JPG=emoji(0)), tmp_path / "page")


def test_a_damaged_image_leaves_no_half_page(tmp_path):
    refused(
        DataError,
        r"r: 1 of 2 image files cannot be read: b\.png: not a JPEG",
        *other_side(tmp_path, data=b"no image"),
        tmp_path / "page",
    )


def test_a_folder_with_something_in_it_is_not_overwritten_but_an_empty_one_is_used(sides, tmp_path):
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir(), empty.mkdir()
    (full / "kept").write_text("mine")
    with pytest.raises(UserError, match="exists already, and is not overwritten"):
        write_preference_page(*sides, full)
    assert [path.name for path in full.iterdir()] == ["kept"]
    assert write_preference_page(*sides, empty) == empty / "index.html"


def test_sides_that_cannot_be_compared_and_places_that_cannot_be_written_are_refused(sides, tmp_path):
    (tmp_path / "empty").mkdir(), (tmp_path / "empty2").mkdir()
    (tmp_path / "file").write_text("text")
    out = tmp_path / "page"
    refused(UserError, "stands on both sides", sides[0], sides[0] / "x" / "..", out)
    refused(DataError, "empty: no image files", tmp_path / "empty", tmp_path / "empty2", out)
    refused(DataError, "absent; give a folder", tmp_path / "none", sides[1], out)
    refused(DataError, "file: not readable as an archive", tmp_path / "file", sides[1], out)
    refused(UserError, "question: is empty", *sides, out, question=" ")
    with pytest.raises(ResourceError, match=r"file/page: cannot be written: .*Not a directory"):
        write_preference_page(*sides, tmp_path / "file" / "page")


def test_a_damaged_archive_member_is_named(sides, tmp_path):
    for name in ("l.zip", "r.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.write(sides[0] / "x/000000.png", "a.png")
    data = bytearray((tmp_path / "r.zip").read_bytes())
    data[200] ^= 255
    (tmp_path / "r.zip").write_bytes(data)
    refused(
        DataError,
        r"r\.zip: 1 of 1 image files cannot be read: a\.png: damaged",
        tmp_path / "l.zip",
        tmp_path / "r.zip",
        tmp_path / "p",
    )
