"""docs/errors.md against the code: every kind of error, its exit code, and messages that are still raised."""

import ast
import re
from pathlib import Path

import pytest

from pixelspace import cli, errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
KINDS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.PixelspaceError) and kind is not errors.PixelspaceError
}
OWN_PAGES = {"serving", "exporting", "hub"}  # rooms whose messages are told where they are explained


def _text(node: ast.expr) -> str:
    """A message as the page writes it, with … for what differs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return "…"


def _raised() -> list[tuple[str, str, str]]:
    """(kind, room, message) of every error that the package makes."""
    found = []
    for path in sorted((ROOT / "pixelspace").rglob("*.py")):
        room = path.relative_to(ROOT / "pixelspace").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
                found.append((node.func.id, room, _text(node.args[0])))
    return found


def _section(code: int) -> str:
    found = re.search(rf"^## {code} .*?(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"no section for exit code {code}"
    return found.group()


def _rows(code: int) -> list[str]:
    return re.findall(r"^\| `(.+?)` \|", _section(code), re.MULTILINE)


def _fits(told: str, message: str) -> bool:
    """Whether a message begins as it is told; … stands for anything."""
    return re.match(".*".join(map(re.escape, told.split("…"))), message) is not None


RAISED = _raised()
TOLD = [(kind, row) for kind in KINDS for row in _rows(KINDS[kind].exit_code)]


def test_every_kind_has_a_section_and_a_line_with_its_exit_code():
    for name, kind in KINDS.items():
        assert f"| {kind.exit_code} | `{name}` |" in PAGE and name in _section(kind.exit_code).splitlines()[0]


def test_every_exit_code_that_the_command_line_names_is_on_the_page_and_no_other():
    told = set(re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE))
    said = set(re.findall(r"\b(\d+)\s[a-z]", cli.__doc__ or ""))
    assert told == said == {"0", "70", "130"} | {str(kind.exit_code) for kind in KINDS.values()}


@pytest.mark.parametrize(("kind", "told"), TOLD, ids=[told[:60] for _, told in TOLD])
def test_a_message_on_the_page_is_one_that_is_raised(kind, told):
    assert len(told.replace("…", "").strip()) >= 12, "says too little to be recognised"
    assert any(one == kind and _fits(told, message) for one, _, message in RAISED)


@pytest.mark.parametrize("kind", KINDS)
def test_every_room_that_raises_a_kind_has_a_message_of_it_on_the_page(kind):
    rows = _rows(KINDS[kind].exit_code)
    rooms = {room for one, room, _ in RAISED if one == kind} - OWN_PAGES
    told = {room for one, room, message in RAISED if one == kind and any(_fits(row, message) for row in rows)}
    assert rooms - told == set()
