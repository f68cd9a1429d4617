"""A command line: which command it means, or in one line why it means none."""

import functools
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any, get_type_hints

import tyro

from pixelspace.config import nearest
from pixelspace.errors import UserError

Command = Callable[..., None]
_RULE = {"─", "-"}  # where the terminal has no UTF-8 the second
_BROUGHT = re.compile(r"\[([^\]]*)\]")
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "a text"}


def _later(command: Command) -> Callable[..., Callable[[], None]]:
    """As `command`, but a call of it is only made when what it gives is called."""

    @functools.wraps(command)
    def called(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return lambda: command(*args, **kwargs)

    return called


def _sections(said: str) -> list[list[str]]:
    """The lines of tyro's message between its rules, without its frame."""
    sections = [list[str]()]
    for line in said.splitlines()[1:-1]:
        text = line[1:-1].strip()
        if text and set(text) <= _RULE:
            sections.append([])
        elif text:
            sections[-1].append(text)
    return [section for section in sections if section]


def _options(command: Command) -> list[str]:
    hints, found = get_type_hints(command, include_extras=True), []
    for name, one in inspect.signature(command).parameters.items():
        if one.kind == inspect.Parameter.KEYWORD_ONLY:
            notes = (getattr(note, "name", None) for note in getattr(hints[name], "__metadata__", ()))
            found.append(f"--{next(filter(None, notes), name).replace('_', '-')}")
    return found


def _refusal(said: str, name: str, command: Command | None) -> UserError:
    """What tyro says in a box, in one line."""
    first, *others = _sections(said) or [["it cannot be understood"]]
    where, told = f"pixelspace {name}".strip(), " ".join(first).rstrip(".")
    see = f"see `{where} --help`"
    if told.startswith("Unrecognized") and command is not None:
        unknown = re.split(r", | ", told.partition(": ")[2])[0]
        if unknown.startswith("-"):
            return UserError(f"{where}: no option {unknown!r}; {nearest(unknown, _options(command))}; {see}")
        return UserError(f"{where}: {unknown!r} is one argument too many; {see}")
    if told.startswith("Missing from") and len(first) > 2:
        option, what = first[1].partition(" ")[0], " ".join(first[2:]).replace(" (required)", "").rstrip(".")
        given = f"{option} is missing: {what}" if option.startswith("-") else f"give {what[:1].lower()}{what[1:]}"
        return UserError(f"{where}: {given}; {see}")
    if (found := re.match(r"Error parsing ([^ :]+)", told)) and others and (brought := _BROUGHT.search(told)):
        kinds = [kind for word, kind in _KINDS.items() if word in " ".join(others[0][:2])]
        return UserError(
            f"{where}: {found[1]}: expected {kinds[0] if kinds else 'another value'}, found {brought[1]}; {see}"
        )
    return UserError(f"{where}: {told}; {see}")


def understood(arguments: Sequence[str] | None, commands: Mapping[str, Command]) -> Callable[[], None]:
    """The call that the arguments (None: the process's own) mean.

    Raises:
        UserError: they mean none.
        SystemExit: help was asked for and printed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    name = "" if given[0].startswith("-") else given[0]
    if name and name not in commands:
        raise UserError(f"no command {name!r}; {nearest(name, commands)}")
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {one: _later(command) for one, command in commands.items()},
                prog="pixelspace",
                description="Diffusion models that make images directly.",
                args=given,
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise _refusal(said.getvalue(), name, commands.get(name)) from error
