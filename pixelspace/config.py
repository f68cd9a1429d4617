"""Values: frozen dataclasses that are checked when made, and go to JSON and back.

`value` makes a class one. `to_data`/`from_data` turn a tree of values into plain data, each class by name, and back by
a table of names the caller hands in; `override` sets one field by its dotted path. Nothing is cast or ignored silently.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses

from pixelspace.errors import UserError

T = TypeVar("T")

_CONFIG = pydantic.ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen dataclass whose field types are checked strictly (no casts, no NaN, no extra fields)."""
    return pydantic.dataclasses.dataclass(frozen=True, slots=True, config=_CONFIG)(cls)  # pyright: ignore


FEW = 24


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name: the closest of `names`, and all of them if they are few, or none is close."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else ""
    return hint if close and len(names) > FEW else f"{hint} known here: {', '.join(names) or 'nothing'}".strip()


def _refused(obj: Any) -> Any:
    raise TypeError(f"{type(obj).__name__} is not a value")


def to_data(obj: Any, other: Callable[[Any], Any] = _refused) -> Any:
    """Plain JSON data for a tree of values; each value becomes an object with its class name under `type`. `other`
    describes what is no value."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = {f.name: to_data(getattr(obj, f.name), other) for f in dataclasses.fields(obj)}
        return {"type": type(obj).__name__, **fields}
    if isinstance(obj, tuple | list):
        return [to_data(item, other) for item in obj]
    if obj is None or isinstance(obj, bool | int | float | str):
        return obj
    return other(obj)


def problem(path: str, error: pydantic.ValidationError) -> str:
    """In one line, what is wrong with the value at a dotted path."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in (path, *first["loc"]) if part != "")
    if first["type"] == "value_error":
        said = str(first.get("ctx", {}).get("error"))
        return f"{where}: {said}" if where else said
    found = first["input"]
    shown = type(found).__name__ if dataclasses.is_dataclass(found) else repr(found)
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {message}; found {shown}"


def from_data(data: Any, types: Mapping[str, type], path: str = "") -> Any:
    """The tree of values that `to_data` described.

    Raises:
        UserError: an unknown class or field, a wrong type or a bad number, named by its dotted path.
    """
    at = f"{path}." if path else ""
    if isinstance(data, list):
        return tuple(from_data(item, types, f"{at}{i}") for i, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    if "type" not in data:
        raise UserError(f"{path or 'the top level'}: an object needs a 'type'; found {sorted(data)}")
    name = data["type"]
    if not isinstance(name, str) or name not in types:
        raise UserError(f"{at}type: no such type {name!r}; {nearest(str(name), types)}")
    fields = {f.name for f in dataclasses.fields(types[name])}
    for key in data.keys() - {"type"}:
        if key not in fields:
            raise UserError(f"{at}{key}: no such setting of {name}; {nearest(key, fields)}")
    arguments = {key: from_data(item, types, f"{at}{key}") for key, item in data.items() if key != "type"}
    try:
        return types[name](**arguments)
    except pydantic.ValidationError as error:
        raise UserError(problem(path, error)) from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = {}
    for key, item in pairs:
        if key in data:
            raise ValueError(f"the key {key!r} stands twice")
        data[key] = item
    return data


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def parse_json(text: str) -> Any:
    """JSON without duplicate keys, NaN or infinity.

    Raises:
        ValueError: what is wrong and where.
    """
    return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def read_json(path: Path) -> Any:
    """`parse_json` of a file.

    Raises:
        UserError: naming the file.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error


def override(data: Any, setting: str) -> Any:
    """`data` with one field replaced; `setting` is `path=value`, the value in JSON (a bare word is a string).

    A `*` in the path stands for every item of a list.

    Raises:
        UserError: no such path, with the nearest existing name.
    """
    path, eq, text = setting.partition("=")
    if not eq:
        raise UserError(f"--set {setting}: expected path=value")
    try:
        new = parse_json(text)
    except ValueError:
        new = text
    return _replaced(data, path.split("."), new, path)


def _paths_to(name: str, data: Any) -> Iterator[str]:
    """The dotted paths of all settings of this name in plain data."""
    for key, item in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        if key == name:
            yield name
        yield from (f"{key}.{below}" for below in _paths_to(name, item))


def _replaced(data: Any, keys: list[str], new: Any, path: str) -> Any:
    if not keys:
        return new
    key, rest = keys[0], keys[1:]
    if isinstance(data, dict):
        if key not in data:
            before = path.removesuffix(".".join(keys))
            deeper = next((f"did you mean {before}{found}?" for found in _paths_to(key, data)), "")
            raise UserError(
                f"{path}: no setting {key!r} in {data.get('type', 'it')}; {deeper or nearest(key, data.keys())}"
            )
        return {**data, key: _replaced(data[key], rest, new, path)}
    if isinstance(data, list):
        if key == "*":
            return [_replaced(item, rest, new, path) for item in data]
        if not key.isdecimal() or int(key) >= len(data):
            raise UserError(f"{path}: {key!r} is no index here; give 0 to {len(data) - 1}, or * for all")
        i = int(key)
        return [*data[:i], _replaced(data[i], rest, new, path), *data[i + 1 :]]
    raise UserError(f"{path}: nothing lies below a plain value; remove '.{'.'.join(keys)}'")
