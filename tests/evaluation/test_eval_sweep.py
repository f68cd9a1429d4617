"""Grids of settings, and what is shown of them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelspace.errors import UserError
from pixelspace.evaluation.protocols import quick
from pixelspace.evaluation.report import Report, described, fingerprint, software, summarised
from pixelspace.evaluation.sweep import Point, folder_of, front, points_of, save
from pixelspace.types import Number


def test_points_are_the_grid_with_the_last_setting_fastest():
    assert points_of(["guidance=1,1.5", "steps=10,25", "sampler=heun"]) == [
        {"guidance": guidance, "steps": steps, "sampler": "heun"} for guidance in (1.0, 1.5) for steps in (10, 25)
    ]


@pytest.mark.parametrize(
    ("sweeps", "said"),
    [
        (["guidance"], r"--sweep guidance: expected NAME=VALUE,VALUE,\.\.\."),
        (["guidance="], r"--sweep guidance=: expected NAME=VALUE"),
        (["sampler=heun,"], r"--sweep sampler=heun,: expected NAME=VALUE"),
        (["guidence=1"], "no setting 'guidence'; did you mean 'guidance'"),
        (["steps=10,2.5"], r"--sweep steps=10,2\.5: steps takes int values"),
        (["guidance=a"], "guidance takes float values"),
        (["guidance=1,1.0"], r"--sweep guidance=1,1\.0: a value stands twice"),
        (["steps=1", "steps=2"], "--sweep: steps is given twice; put its values in one list"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(sweeps, said):
    with pytest.raises(UserError, match=said):
        points_of(sweeps)


def test_every_point_has_a_folder_of_its_own():
    points = points_of(["guidance=1,1.5,10", "steps=1,10"])
    names = [folder_of(point) for point in points]
    assert names[:2] == ["guidance=1.0,steps=1", "guidance=1.0,steps=10"] and len(set(names)) == 6


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(pairs)
def test_the_front_is_what_nothing_dominates(points):
    points = [(float(x), float(y)) for x, y in points]

    def dominates(p, q):
        return p[0] <= q[0] and p[1] >= q[1] and (p[0] < q[0] or p[1] > q[1])

    found = front(points)
    assert set(found) == {i for i, q in enumerate(points) if not any(dominates(p, q) for p in points)}
    assert len(set(found)) == len(found)
    curve = [points[i] for i in found]
    assert curve == sorted(curve) and [y for _, y in curve] == sorted(y for _, y in curve)


def point(settings, **numbers) -> Point:
    row = [Number(name, value, name.startswith("F")) for name, value in numbers.items()]
    data = {
        **{"protocol": described(quick()), "fingerprint": fingerprint(quick())},
        **{"images": {"source": "run", "count": 9}, "reference": None, "networks": [], "notes": []},
        **{"numbers": summarised([row], ""), "software": software(torch.device("cpu"))},
    }
    return Point(settings, Report(data))


def test_a_sweep_is_saved_as_a_table_as_data_and_as_curves(tmp_path):
    points = [
        point(settings, **{"FID": 10.0 + i, "CLIPScore (100 cos)": 20.0 + i, "a|b": 0.5})
        for i, settings in enumerate(points_of(["steps=25,10", "sampler=heun,dpm"]))
    ]
    written = save(points, tmp_path)
    assert [path.name for path in written] == ["sweep.md", "over-steps.png", "over-sampler.png", "pareto.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(path.name for path in written), "sweep.json"]
    ), "nothing is left"
    for path in written[1:]:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 200
    lines = written[0].read_text().splitlines()
    assert lines[2:] == [
        "| steps | sampler | FID | CLIPScore (100 cos) | a\\|b |",
        "|---|---|---|---|---|",
        "| 25 | heun | 10 | 20 | 0.5 |",
        "| 25 | dpm | 11 | 21 | 0.5 |",
        "| 10 | heun | 12 | 22 | 0.5 |",
        "| 10 | dpm | 13 | 23 | 0.5 |",
    ]
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert rows[3] == {
        "settings": {"steps": 10, "sampler": "dpm"},
        "numbers": {"FID": 13.0, "CLIPScore (100 cos)": 23.0, "a|b": 0.5},
    }


def test_without_a_score_there_is_no_front(tmp_path):
    points = [point({"guidance": g}, FD=g) for g in (1.0, 2.0)]
    assert [path.name for path in save(points, tmp_path)] == ["sweep.md", "over-guidance.png"]
