"""COCO's captions, as a data set and as prompts."""

import json
from pathlib import Path

import pytest

from pixelspace.config import from_data, to_data
from pixelspace.data.coco import Captioned, Coco, drawn, read_captions
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.prompts import read_prompts
from pixelspace.random import Rng
from tests.data.image_folders import draw


def annotations(count: int, each: int = 5) -> dict:
    """As captions_val2014.json is laid out."""
    images = [{"id": 10 * i, "file_name": f"COCO_val2014_{i:012}.jpg", "height": 8, "width": 12} for i in range(count)]
    texts = [
        {"image_id": 10 * i, "id": each * i + j, "caption": f"image {i} said {j}. \n"}
        for j in range(each)
        for i in range(count)
    ]
    return {"info": {"year": 2014}, "licenses": [], "images": images, "annotations": texts}


def write(path: Path, data: object) -> str:
    path.write_text(json.dumps(data))
    return str(path)


@pytest.fixture
def coco(tmp_path) -> tuple[Path, dict]:
    data = annotations(3, 2)
    for i, image in enumerate(data["images"]):
        draw(tmp_path / "val2014" / image["file_name"], seed=i)
    return tmp_path, data


def test_every_image_has_all_its_captions(coco):
    root, data = coco
    dataset = Coco(str(root / "val2014"), write(root / "c.json", data)).open(root / "cache")
    assert len(dataset) == 3 and dataset.classes == ()
    for i in range(3):
        assert dataset.name(i) == f"COCO_val2014_{i:012}.jpg"
        assert dataset[i].texts == (f"image {i} said 0.", f"image {i} said 1.") == dataset.texts(i)
    assert dataset.columns() == ("captions", "caption_length", "height", "width")
    assert dataset.column("captions").tolist() == [2] * 3 and dataset.column("width").tolist() == [12] * 3
    assert len(set(dataset.keys().tolist())) == 3 and dataset.files().tolist() == [0]


def test_images_that_are_not_listed_and_files_beside_them_are_left_alone(coco):
    root, data = coco
    (root / "val2014" / "bad.jpg").write_bytes(b"")
    draw(root / "val2014" / "other.jpg")
    (root / "val2014" / "COCO_val2014_000000000000.txt").write_bytes(b"\xff")
    assert len(Coco(str(root / "val2014"), write(root / "c.json", data)).open()) == 3


def test_missing_images_and_wrong_captions_count_against_the_budget(coco):
    root, data = coco
    (root / "val2014" / data["images"][1]["file_name"]).unlink()
    path = write(root / "c.json", data)
    with pytest.raises(DataError, match=r"1 of 3 .* bad.*0001.jpg: no such image; c.json lists it; mend"):
        Coco(str(root / "val2014"), path).open()
    assert len(Coco(str(root / "val2014"), path, 0.4).open()) == 2
    data["annotations"][0]["caption"] = "x" * 100_000
    data["annotations"][5]["caption"] = None
    path = write(root / "c.json", data)
    with pytest.raises(
        DataError,
        match=r"0.jpg: c.json: annotations\[0\]: text is over 8192 bytes; .*2.jpg: c.json: annotations\[5\]: text must",
    ):
        Coco(str(root / "val2014"), path, 0.6).open()


def test_blank_captions_are_none(coco):
    root, data = coco
    data["annotations"] = [{"image_id": 10, "caption": " \n"}, {"image_id": 10, "caption": "b"}]
    dataset = Coco(str(root / "val2014"), write(root / "c.json", data)).open()
    assert [dataset.texts(i) for i in range(3)] == [(), ("b",), ()]


def changed(kind: str, i: int, **fields: object) -> dict:
    data = annotations(2)
    data[kind][i] |= fields
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"expected COCO's captions, an object with images and annotations"),
        ({"images": []}, r"expected COCO's captions"),
        ({"images": {}, "annotations": []}, r"images: expected a list, found dict"),
        ({"images": [3], "annotations": []}, r"images\[0\]: expected id, int; found 3"),
        (changed("images", 1, id="x"), r"images\[1\]: expected id, int; found \{'id': 'x'"),
        (changed("images", 1, id=0), r"images\[1\]: id 0 is that of images\[0\] too"),
        (changed("images", 1, file_name=3), r"images\[1\]: expected file_name, str"),
        (
            changed("images", 1, file_name="./COCO_val2014_000000000000.jpg"),
            r"images\[1\]: './COCO.*' is the file of images\[0\]",
        ),
        (changed("annotations", 7, image_id=11), r"annotations\[7\]: there is no image of id 11"),
        (changed("annotations", 7, image_id=True), r"annotations\[7\]: expected image_id, int"),
    ],
)
def test_what_is_wrong_is_named_by_its_item(tmp_path, data, message):
    with pytest.raises(DataError, match=f"^{tmp_path}/c.json: {message}"):
        read_captions(Path(write(tmp_path / "c.json", data)))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"{", "not JSON"), (b"\xff", "not UTF-8 at byte 0"), (b'{"images": NaN}', "not JSON: NaN"), (None, "cannot be")],
)
def test_what_is_no_json_is_refused(tmp_path, data, message):
    if data is not None:
        (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(DataError, match=f"c.json: {message}"):
        read_captions(tmp_path / "c.json")


def test_names_that_lead_out_of_the_folder_are_no_images_of_it(coco):
    root, data = coco
    draw(root / "outside.jpg")
    data["images"][0]["file_name"] = "../outside.jpg"
    data["images"][1]["file_name"] = str(root / "outside.jpg")
    with pytest.raises(DataError, match=r"2 of 3.*\.\./outside.jpg: no such image; .*/outside.jpg: no such image"):
        Coco(str(root / "val2014"), write(root / "c.json", data)).open()


def test_it_is_a_value():
    source = Coco("images", "captions.json", 0.2)
    assert from_data(to_data(source), {"Coco": Coco}) == source
    with pytest.raises(UserError, match="max_bad_share must be in"):
        from_data({"type": "Coco", "images": "x", "annotations": "y", "max_bad_share": 1.0}, {"Coco": Coco})


# Prompts


def test_prompts_are_one_caption_of_each_of_30000_images(tmp_path):
    prompts = read_prompts(Path(write(tmp_path / "c.json", annotations(31_000, 2))))
    assert len(prompts) == 30_000
    whose = [int(prompt.split()[1]) for prompt in prompts]
    assert whose == sorted(set(whose))  # in order of the files, each once
    assert abs(sum(prompt.endswith("said 1.") for prompt in prompts) - 15_000) < 5 * 30_000**0.5 / 2


def test_any_image_and_caption_is_as_likely_whatever_the_order_of_the_file():
    images = [Captioned("", f"{i:04}.jpg", tuple(f"{i} {j}" for j in range(5))) for i in range(2000)]
    found = drawn(images, 1000, Rng(0))
    assert found == drawn(images[::-1], 1000, Rng(0))
    numbers, picks = zip(*(map(int, text.split()) for _, text in found), strict=True)
    assert abs(sum(numbers) / 1000 - 999.5) < 5 * 2000 / 12**0.5 / 1000**0.5
    assert all(abs(picks.count(j) - 200) < 5 * 160**0.5 for j in range(5))


def test_fewer_images_are_all_drawn_and_those_without_captions_are_not(tmp_path):
    data = annotations(3, 1)
    data["annotations"] = data["annotations"][:2]
    assert read_prompts(Path(write(tmp_path / "c.json", data))) == ("image 0 said 0.", "image 1 said 0.")
    with pytest.raises(DataError, match=r"c.json: holds no captions"):
        read_prompts(Path(write(tmp_path / "c.json", data | {"annotations": []})))


def test_prompts_refuse_what_is_wrong_by_its_item(tmp_path):
    with pytest.raises(DataError, match=r"c.json: annotations\[1\]: text must be a string, found 7"):
        read_prompts(Path(write(tmp_path / "c.json", changed("annotations", 1, caption=7))))
    with pytest.raises(DataError, match=r"c.json: annotations\[1\]: there is no image"):
        read_prompts(Path(write(tmp_path / "c.json", changed("annotations", 1, image_id=7))))


def test_each_seed_draws_others():
    images = [Captioned("", f"{i:04}.jpg", ("a", "b", "c")) for i in range(1000)]
    first, second = (drawn(images, 100, Rng(seed)) for seed in (0, 1))
    assert first == drawn(images, 100, Rng(0)) and len({file for file, _ in first}) == 100
    assert len(set(first) & set(second)) < 30
