"""Who may import whom: an arrow goes down, any number of floors; never up, never sideways."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pixelspace"
FLOORS = (
    {"types", "errors"},
    {"config", "random", "dist"},
    {"store", "files", "foreign", "places", "hub"},
    {"noise", "nn"},
    {"backbones", "objectives", "sampling", "growth", "data", "text"},
    {"training", "evaluation", "interop"},
    {"model_config"},
    {"card"},
    {"recipes", "model"},
    {"api"},
    {"demo", "drawing", "exporting"},
    {"judge", "diagnosis"},
    {"serving"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TORCH_ONLY = {"noise", "objectives", "sampling", "growth"}
STANDARD_OR_TORCH = {"torch", "pixelspace"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "pixelspace" else []
            yield from ((name, node.lineno) for name in names or [node.module])


def broken(path: Path, source: str) -> list[str]:
    import sys

    room, found = room_of(path), []
    for name, line in imports(ast.parse(source)):
        parts = name.split(".")
        if parts[0] in ("tests", "benchmarks", "examples"):
            found.append(f"{path}:{line}: the package imports {parts[0]}")
        elif parts[0] == "pixelspace" and len(parts) > 1:
            target = parts[1]
            if target != room and FLOOR[target] >= FLOOR[room]:
                found.append(f"{path}:{line}: {room} (floor {FLOOR[room]}) imports {target} (floor {FLOOR[target]})")
        elif room in TORCH_ONLY and parts[0] not in STANDARD_OR_TORCH | sys.stdlib_module_names:
            found.append(f"{path}:{line}: {room} may import torch and the standard library, not {parts[0]}")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    assert broken(path, path.read_text()) == []


def test_a_planted_import_is_found():
    path = PACKAGE / "objectives" / "planted.py"
    assert "objectives (floor 4) imports backbones" in broken(path, "from pixelspace.backbones.hdit import HDiT")[0]
    assert "not numpy" in broken(path, "import numpy")[0]


def test_nothing_catches_everything_or_reads_pickles():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.id if isinstance(node.type, ast.Name) else node.type
                allowed = caught is not None and (caught != "Exception" or room_of(path) == "cli")
                assert allowed, f"{path}:{node.lineno} catches everything"
            if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                assert node.value.id not in ("pickle", "torch") or room_of(path) == "foreign", f"{path}:{node.lineno}"
