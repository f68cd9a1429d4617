"""What the site shows that no file in docs/ says: the help of every command, the recipes by name, what was measured.

MkDocs calls the functions by their names.
"""

import io
import os
import re
from contextlib import redirect_stdout
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pixelspace.cli import COMMANDS, main
from pixelspace.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent


def _help(command: str) -> str:
    os.environ["COLUMNS"] = "76"
    told = io.StringIO()
    try:
        with redirect_stdout(told):
            main([command, "--help"])
    except SystemExit:
        pass
    return re.sub(r" +$", "", told.getvalue(), flags=re.MULTILINE).strip()


def commands() -> str:
    """A section for each command, with its help as the terminal has it."""
    return "\n".join(f"## {name}\n\n```text\n{_help(name)}\n```\n" for name in COMMANDS)


def recipes() -> str:
    """The table of recipes."""
    rows = (f"| `{name}` | {line} |" for name, (_, line) in RECIPES.items())
    return "\n".join(("| recipe | what it trains |", "|---|---|", *rows))


WRITTEN = {"commands": commands, "recipes": recipes}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Takes in the results of benchmarks, which lie beside what made them."""
    for path in sorted((ROOT / "benchmarks").glob("*.md")):
        files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills `<!-- commands -->` and `<!-- recipes -->` in; links to benchmarks lead to where they lie in the site."""
    for name, write in WRITTEN.items():
        mark = f"<!-- {name} -->"
        markdown = markdown.replace(mark, write()) if mark in markdown else markdown
    return re.sub(r"\]\(\.\./((?:\.\./)*benchmarks/)", r"](\1", markdown)
