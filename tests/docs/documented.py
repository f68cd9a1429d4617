"""Pages as people follow them: the blocks of a page, run one after the other in an empty folder, at small size.

A fenced `python` block is executed, all of a page in one namespace; one that begins with `# NAME.py` is that file. An
indented block is typed into a terminal. Fences of other languages show what is printed, and are not run.
"""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pixelspace.cli import COMMANDS, main
from pixelspace.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
SMALL = Path(__file__).with_name("small.py")
SHOWN = ("text", "json", "")
FEW = 8  # images drawn or judged
STEPS = 4
LONGER = 12  # images of a training that is made longer; small ones have 8
SIDE = 32  # of images to encode
STAYING = ("serve", "watch")  # they end when they are told to


class Block(NamedTuple):
    """`line` is the number of its first line in the page; `kind` is python, shell, or what a fence shows."""

    line: int
    kind: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The fenced and indented blocks of a page of Markdown."""
    lines = page.splitlines()
    at = 0
    while at < len(lines):
        begun = at
        if fence := re.match(r"```(\w*)", lines[at]):
            at += 1
            while not lines[at].startswith("```"):
                at += 1
            yield Block(begun + 2, fence[1], "\n".join(lines[begun + 1 : at]))
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            yield Block(begun + 1, "shell", "\n".join(line[4:] for line in lines[begun:at]).rstrip())
            continue
        at += 1


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in a block of the shell, comments left out and `~` replaced."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word == "&&":
                yield words
                words = []
            else:
                words.append(str(Path(word).expanduser()) if word.startswith("~") else word)
        if words:
            yield words


def _at_most(arguments: list[str], option: str, most: int) -> list[str]:
    if option not in arguments:
        return arguments
    at = arguments.index(option) + 1
    return [*arguments[:at], str(min(int(arguments[at]), most)), *arguments[at + 1 :]]


def smaller(arguments: list[str]) -> list[str]:
    """The same command for few images and few steps, of a small recipe."""
    for option, most in (("-n", FEW), ("--count", FEW), ("--steps", STEPS)):
        arguments = _at_most(arguments, option, most)
    command, *rest = arguments
    if command == "train" and rest[0] in RECIPES and not rest[0].endswith("-debug"):
        rest[0] = f"{SMALL}:{rest[0]}"
    rest = [re.sub(r"^(stages\.\d+\.images=)\d+$", rf"\g<1>{LONGER}", word) for word in rest]
    if command == "encode":
        rest = _at_most(rest, "--size", SIDE)
    if command == "evaluate" and "--count" not in rest:
        rest += ["--count", str(FEW)]
    if "--judge" in rest:
        rest += ["--set", f"stages.*.evaluators.0.protocol.count={FEW}"]
    return [command, *rest]


def _pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [
        one for word in words for group in re.findall(r"^(?:\.|pixelspace)\[(.*)\]$", word) for one in group.split(",")
    ]
    assert set(named) <= set(extras), f"pip: no extra of that name among {words}"


def _pixelspace(words: list[str]) -> None:
    if words[0] in STAYING:
        assert words[0] in COMMANDS
        return
    try:
        code = main(smaller(words))
    except SystemExit as stop:
        code = stop.code
    assert code == 0, f"pixelspace {shlex.join(words)}: exit code {code}"


def _make(words: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words) <= set(targets), f"make: no such target among {words}"
    if "demo" in words:
        _pixelspace(["train", "hdit-demo"])


def _torchrun(words: list[str]) -> None:
    at = words.index("-m")
    assert words[at + 1] == "pixelspace"
    _pixelspace(words[at + 2 :])


def _python(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file(), f"python: no file {words[0]}"


def _activate(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "pixelspace": _pixelspace,
    "torchrun": _torchrun,
    "pip": _pip,
    ".": _activate,
    "make": _make,
    "python": _python,
}


def run_block(block: Block, where: str, names: dict[str, Any]) -> None:
    """Runs a block in the working folder, python with `names`; one that shows something is left alone.

    Raises:
        AssertionError: a command that fails, or of which it is not known how to run it.
    """
    if block.kind == "python":
        if file := re.match(r"# (\w+\.py)\n", block.text):
            Path(file[1]).write_text(block.text, encoding="utf-8")
        else:
            exec(compile(block.text, where, "exec"), names)
    elif block.kind == "shell":
        for words in commands(block.text):
            assert words[0] in PROGRAMS, f"{where}: it is not known how to run {words[0]!r}"
            PROGRAMS[words[0]](words[1:])
    else:
        assert block.kind in SHOWN, f"{where}: a block of {block.kind!r}, which is neither run nor shown"


def run_page(path: Path) -> int:
    """Runs all blocks of a page one after the other, and counts those that are run and not only shown."""
    names: dict[str, Any] = {"__name__": path.stem}
    found = list(blocks(path.read_text(encoding="utf-8")))
    for block in found:
        run_block(block, f"{path.name}:{block.line}", names)
    return sum(block.kind not in SHOWN for block in found)
