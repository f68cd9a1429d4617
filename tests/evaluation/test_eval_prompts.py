import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.prompts import KEYS, read_prompts

CAPTIONS = ("a red fox", 'two, "quoted" things', "Äpfel\u2028und Birnen", " spaces kept ")


def write(path, captions, key="caption"):
    if path.suffix == ".txt":
        text = "".join(f"{caption}\n" for caption in captions)
    elif path.suffix == ".json":
        text = json.dumps([{key: caption, "id": 3} for caption in captions])
    elif path.suffix == ".jsonl":
        text = "".join(json.dumps({key: caption}) + "\n" for caption in captions)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", key], *([i, caption] for i, caption in enumerate(captions))])
        return path
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv"])
def test_every_form_gives_the_same_captions(tmp_path, suffix, key):
    assert read_prompts(write(tmp_path / f"p{suffix}", CAPTIONS, key)) == CAPTIONS


@settings(deadline=None, max_examples=50)
@given(captions=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=5))
def test_no_character_breaks_a_caption_of_json(tmp_path_factory, captions):
    folder = tmp_path_factory.mktemp("prompts")
    for suffix in (".json", ".jsonl"):
        assert read_prompts(write(folder / f"p{suffix}", captions)) == tuple(captions)


def test_plain_strings_and_the_marks_of_windows_are_read(tmp_path):
    (tmp_path / "p.json").write_text('["a", "b"]')
    assert read_prompts(tmp_path / "p.json") == ("a", "b")
    (tmp_path / "p.jsonl").write_text('"a"\n"b"')
    assert read_prompts(tmp_path / "p.jsonl") == ("a", "b")
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert read_prompts(tmp_path / "p.txt") == ("a", "b")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "a\n\nb\n", r"p.txt:2: an empty caption"),
        ("p.txt", "", r"p.txt: holds no captions"),
        ("p.json", "{}", r"p.json: expected a list, found dict"),
        ("p.json", '["a", 3]', r"p.json: item 2: expected a string, or an object with one of caption, .*found 3"),
        ("p.json", '["a", {"id": 3}]', r"p.json: item 2: expected one of caption, text, prompt; found none of them"),
        ("p.json", '[{"text": "a", "prompt": "b"}]', r"p.json: item 1: expected one of .*; found text, prompt"),
        ("p.json", '["a"', r"p.json: not readable as .json: "),
        ("p.json", '[{"text": "a", "text": "b"}]', r"the key 'text' stands twice"),
        ("p.jsonl", '"a"\n{"text": \n', r"p.jsonl:2: not JSON: "),
        ("p.jsonl", '"a"\n\n', r"p.jsonl:2: not JSON"),
        ("p.jsonl", '"a"\n" "\n', r"p.jsonl:2: an empty caption"),
        ("p.csv", "id,name\n1,a\n", r"p.csv:1: expected one of caption, text, prompt; found none of them"),
        ("p.csv", "caption,text\n1,a\n", r"p.csv:1: expected one of caption, text, prompt; found caption, text"),
        ("p.csv", "caption,caption\n1,a\n", r"p.csv:1: expected one of .* found caption, caption"),
        ("p.csv", 'id,text\n1,"a\nb"\n2\n', r"p.csv:4: expected 2 fields, found 1"),
        ("p.csv", 'id,text\n1,"a', r"p.csv: not readable as .csv: unexpected end of data"),
        ("p.csv", "", r"p.csv:1: expected one of"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, newline="")
    with pytest.raises(DataError, match=said) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"p.parquet: expected captions in .txt, .json, .jsonl, .csv; found '?.parquet"):
        read_prompts(tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p.txt: not readable as .txt: .*No such file"):
        read_prompts(tmp_path / "p.txt")
    (tmp_path / "latin.txt").write_bytes("Äpfel".encode("latin1"))
    with pytest.raises(DataError, match=r"latin.txt: not UTF-8 at byte 0; save it as UTF-8"):
        read_prompts(tmp_path / "latin.txt")
