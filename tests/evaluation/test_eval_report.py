"""Reports are read back as they were written, by people and by programs."""

import json
import re
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.inception import Inception
from pixelspace.evaluation.metrics import Frechet, Kernel
from pixelspace.evaluation.protocols import PROTOCOLS, QUESTIONS, Protocol, Questions, quick
from pixelspace.evaluation.report import Report, described, fingerprint, read_report, shown, software, summarised
from pixelspace.types import Number
from tests.evaluation.judged import Projected, protocol


def report(numbers, notes=(), **images) -> Report:
    return Report(
        {
            "protocol": described(quick()),
            "fingerprint": fingerprint(quick()),
            "images": {"source": "mine", "count": 1234, **images},
            "reference": {"source": "theirs.npz", "header": None},
            "networks": [{"name": "Lite0", "sha256": "ab"}],
            "numbers": summarised(numbers, ""),
            "notes": list(notes),
            "software": software(torch.device("cpu")),
        }
    )


ONE = [[Number("FD", 1.5, True, {"width": 8}), Number("precision", 0.25, False)]]


def cells(line: str) -> list[str]:
    """Of a row of a Markdown table."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


def tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in text.split("\n"):
        if line.startswith("|"):
            found[-1].append(cells(line))
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_a_report_is_read_back_as_it_was_written(tmp_path):
    written = report(ONE, ["a note"])
    assert written.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "report.md"
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "report.json"):
        assert read_report(path) == written
    assert read_report(tmp_path / "new" / "folder").markdown() == (tmp_path / "new/folder/report.md").read_text()


@pytest.mark.parametrize("gone", ["protocol", "fingerprint", "reference", "numbers", "notes", "software"])
def test_what_is_no_report_is_refused(tmp_path, gone):
    data = {key: item for key, item in report(ONE).data.items() if key != gone}
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=f"{tmp_path}: is no report of `pixelspace evaluate`"):
        read_report(tmp_path)


def test_a_report_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"report\.json: not readable as JSON"):
        read_report(tmp_path)


def test_numbers_are_found_by_name():
    assert report(ONE).numbers == {"FD": 1.5, "precision": 0.25}


def test_the_line_says_what_a_number_is_of():
    said = report(ONE).line
    assert said.startswith(f"quick [{fingerprint(quick())}], 1,234 images against theirs.npz, pixelspace ")
    assert "against" not in Report({**report(ONE).data, "reference": None}).line


def test_markdown_has_the_numbers_and_what_made_them():
    text = report(ONE, ["look here"], shape=[3, 8, 8]).markdown()
    assert "| FD | 1.5 | lower | width 8 |" in text and "| precision | 0.25 | higher |  |" in text
    assert "\n- look here\n" in text
    assert "| images: shape | [3, 8, 8] |" in text and "| reference: source | theirs.npz |" in text
    assert "| network: Lite0 | ab |" in text


text = st.text(st.sampled_from("a|\\\n\r\u2028- #"), max_size=6)


@given(text, text, text, text)
def test_no_text_breaks_a_table(name, key, detail, source):
    odd = report([[Number(name, 1.0, True, {key: detail}), ONE[0][0]]], [source], source=source, **{f"x{key}": detail})
    odd.data["networks"][0]["name"] = name
    found = tables(odd.markdown())
    assert [{len(row) for row in table} for table in found] == [{4}, {2}]
    assert len(found[0]) == 2 + 2 and len(odd.markdown().splitlines()) == 4 + 4 + 2 + 3 + len(found[1]) - 2


def test_a_pipe_stays_a_pipe():
    odd = report([[Number("a|b", 1.0, True, {"c|d": "e|f"})]])
    assert "| a\\|b | 1 | lower | c\\|d e\\|f |" in odd.markdown()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((1.0, "1"), (0.123456789, "0.12346"), (-2e-9, "-2e-09"), (123456.7, "123457"), (7, "7"), (True, "True")),
        *((None, "None"), ([1, 2], "[1, 2]"), ({"a": None}, '{"a": null}'), ("a\nb", "a b")),
    ],
)
def test_values_are_shown_in_one_line(value, said):
    assert shown(value) == said


def test_one_run_has_its_values():
    assert summarised(ONE, " (9 images)") == [
        {"name": "FD (9 images)", "value": 1.5, "better": "lower", "details": {"width": 8}},
        {"name": "precision (9 images)", "value": 0.25, "better": "higher", "details": {}},
    ]


def test_several_runs_have_mean_deviation_and_least():
    runs = [[Number("KD", value, True, {"size": 4, "seed": seed})] for seed, value in enumerate((3.0, 1.0, 5.0))]
    (row,) = summarised(runs, "")
    assert (row["value"], row["details"]) == (3.0, {"size": 4})
    assert row["runs"] == {
        **{"values": [3.0, 1.0, 5.0], "mean": 3.0, "std": 2.0, "minimum": 1.0, "count": 3},
        "details": [{"seed": 0}, {"seed": 1}, {"seed": 2}],
    }
    assert "| KD | 3 | lower | std over seeds 2, minimum 1, size 4 |" in report(runs).markdown()


CHANGED = {
    "name": "other",
    "about": "other",
    "count": 999,
    "metrics": quick().metrics[1:],
    "size": (64, 64),
    "crop": "adm",
    "labels": "uniform",
    "truncate": True,
    "seed": 1,
    "repeats": 2,
    "references": 999,
}


@pytest.mark.parametrize("name", [field.name for field in fields(Protocol)])  # pyright: ignore
def test_a_fingerprint_changes_with_any_field_of_a_protocol(name):
    assert fingerprint(replace(quick(), **{name: CHANGED[name]})) != fingerprint(quick())


@pytest.mark.parametrize(
    "metric",
    [
        Frechet("FD", Inception("clean"), "inception.pool"),
        Frechet("FD", Inception("tf1"), "inception.spatial"),
        Frechet("sFD", Inception("tf1"), "inception.pool"),
        Kernel("FD", Inception("tf1"), "inception.pool"),
    ],
    ids=repr,
)
def test_a_fingerprint_changes_with_any_part_of_a_metric(metric):
    usual = replace(quick(), metrics=(Frechet("FD", Inception("tf1"), "inception.pool"),))
    assert fingerprint(replace(usual, metrics=(metric,))) != fingerprint(usual)


def test_fingerprints_of_protocols_differ_and_stay():
    makers = {**PROTOCOLS, **QUESTIONS}
    found = {fingerprint(make()) for make in makers.values()}
    assert len(found) == len(makers) and all(re.fullmatch("[0-9a-f]{12}", one) for one in found)
    assert fingerprint(quick()) == fingerprint(quick())
    assert fingerprint(Questions("a", "b", "dsg")) != fingerprint(Questions("a", "b", "dsg", "none"))


def test_an_extractor_of_ones_own_is_described_by_its_name_and_outputs():
    one = Projected(name="one").extractor
    assert described(protocol(one))["metrics"][0]["extractor"] == {
        **{"type": "Custom", "name": "one", "outputs": {"pixels.projected": 8}}
    }
    others = [Projected(name="two"), Projected(9, name="one")]
    prints = [fingerprint(protocol(extractor)) for extractor in (one, *(other.extractor for other in others))]
    assert len(set(prints)) == 3


def test_software_names_versions_and_device():
    found = software(torch.device("cpu"))
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["device"].startswith("cpu (") and found["threads"] == torch.get_num_threads()
