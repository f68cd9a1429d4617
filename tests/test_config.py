import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelspace.config import from_data, nearest, override, parse_json, to_data, value
from pixelspace.errors import UserError


class Shape:
    pass


@value
class Square(Shape):
    side: float
    corners: tuple[int, ...] = ()

    def __post_init__(self):
        if self.side < 0:
            raise ValueError(f"side cannot be negative, found {self.side}")


@value
class Drawing:
    shape: Shape
    name: str = "plain"
    scale: float | None = None


TYPES = {"Square": Square, "Drawing": Drawing}
DRAWING = Drawing(Square(2.0, (1, 2)))


def test_values_go_to_data_and_back_and_hash():
    assert from_data(to_data(DRAWING), TYPES) == DRAWING
    assert hash(DRAWING) == hash(Drawing(Square(2.0, (1, 2))))


@given(st.floats(0, 1e300), st.lists(st.integers(-(2**60), 2**60)), st.text())
def test_any_number_and_text_survives_json(side, corners, name):
    import json

    drawing = Drawing(Square(side, tuple(corners)), name)
    assert from_data(parse_json(json.dumps(to_data(drawing))), TYPES) == drawing


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("shape.side=abc", r"shape\.side: .*number.*'abc'"),
        ("shape.side=-1", r"shape: side cannot be negative, found -1"),
        ("shape.sidde=1", r"no setting 'sidde' in Square; did you mean 'side'\?"),
        ("corners=[1,2]", r"corners: no setting 'corners' in Drawing; did you mean shape\.corners\?$"),
        ("shape.corners=[1,true]", r"shape\.corners\.1: .*integer.*True"),
        ("shape.corners.5=1", r"'5' is no index here; give 0 to 1"),
        ("shape.side.x=1", r"nothing lies below a plain value"),
        ("shape=3", r"shape: .*instance of Shape; found 3"),
        ("shape.type=Circle", r"shape\.type: no such type 'Circle'"),
        ('shape={"type":"Square","side":1,"colour":2}', r"shape\.colour: no such setting of Square"),
        ("name=2", r"name: .*string.*2"),
        ("scale=1e999", r"scale: .*finite"),
        ("scale=NaN", r"scale: .*number.*'NaN'"),
        ("name", r"--set name: expected path=value"),
    ],
)
def test_a_bad_override_is_refused_by_name(setting, message):
    with pytest.raises(UserError, match=message):
        from_data(override(to_data(DRAWING), setting), TYPES)


def test_a_star_reaches_every_item():
    data = [to_data(DRAWING), to_data(DRAWING)]
    assert override(data, "*.shape.corners.*=4")[1]["shape"]["corners"] == [4, 4]


def test_an_override_changes_one_field():
    changed = from_data(override(to_data(DRAWING), "shape.corners.1=7"), TYPES)
    assert changed == Drawing(Square(2.0, (1, 7)))
    assert from_data(override(to_data(DRAWING), "scale=null"), TYPES) == DRAWING


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "NaN", "[Infinity]", "{"])
def test_json_with_duplicates_or_without_finite_numbers_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_the_nearest_name_comes_first():
    assert nearest("lerning_rate", ["learning_rate", "batch"]).startswith("did you mean 'learning_rate'?")
