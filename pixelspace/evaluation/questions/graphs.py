"""Davidsonian scene graphs: yes/no questions about a prompt, each with the questions it depends on (Cho et al. 2024).

`dsg1k` is packaged: DSG-1k of j-min/DSG, whose graphs PaLM 2 made. The parsers read what a language model says to that
repository's three requests, for graphs of one's own prompts.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from pixelspace.errors import DataError
from pixelspace.evaluation.table import read_table

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")
CATEGORIES = {  # of an item's source, as the paper's table has them
    "tifa160": "tifa",
    "stanford_paragraph": "paragraph",
    "localized_narratives": "paragraph",
    "vrd": "relation",
    "countbench": "count",
    "diffusiondb": "real_user",
    "midjourney": "real_user",
    "posescript": "pose",
    "whoops": "defying",
    "drawtext": "text",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A yes/no question; `parents` are the ids of those that must be yes for it to make sense; `category` is entity,
    attribute, relation, global or other."""

    id: str
    text: str
    parents: tuple[str, ...] = ()
    category: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """A prompt and its questions. `malformed` is a dependency that could not be read, for which the whole item is
    scored without dependencies, as in the reference; "" if there is none."""

    id: str
    prompt: str
    questions: tuple[Question, ...]
    malformed: str = ""

    @property
    def category(self) -> str:
        """Of where the prompt is from: of DSG-1k by its table, else the id without its number."""
        source = self.id.rpartition("_")[0] or self.id
        return CATEGORIES.get(source, source)

    @property
    def orphaned(self) -> bool:
        """Whether a question depends on one that is not there: such an item cannot be scored. DSG-1k has one,
        tifa160_134, which the released answers leave out and so count 0."""
        ids = {question.id for question in self.questions}
        return any(not ids.issuperset(question.parents) for question in self.questions)


def answerable(items: Iterable[Graph]) -> tuple[Graph, ...]:
    """Those that questions can be asked about: all that are not orphaned."""
    return tuple(item for item in items if not item.orphaned)


def _parents(dependency: str) -> tuple[str, ...] | None:
    """Ids of a cell such as "1,2"; 0 stands for none. None for what is not ids alone."""
    parts = [part.strip() for part in dependency.split(",")]
    return tuple(part for part in parts if part != "0") if all(map(_is_id, parts)) else None


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def read_graphs(path: Path) -> tuple[Graph, ...]:
    """The items of a CSV file in DSG-1k's layout, plain or gzipped, in its order. Only `COLUMNS` are needed.

    Raises:
        DataError: by file and line: an id that stands twice or is no number, or two prompts under one item.
    """
    prompts: dict[str, str] = {}
    rows: dict[str, dict[str, tuple[str, str, str]]] = {}
    for where, row in read_table(path, COLUMNS):
        item, question = row["item_id"], row["proposition_id"]
        if not item or not _is_id(question) or question == "0":
            raise DataError(
                f"{where}: expected an item_id and a proposition_id from 1 on, found {item!r}, {question!r}"
            )
        if prompts.setdefault(item, row["text"]) != row["text"]:
            raise DataError(f"{where}: {item} has another text here than in its first row")
        questions = rows.setdefault(item, {})
        if question in questions:
            raise DataError(f"{where}: {item} has its question {question} twice")
        questions[question] = (row["question_natural_language"], row["dependency"], row["category_broad"])
    graphs = []
    for item, questions in rows.items():
        parents = {id: _parents(dependency) for id, (_, dependency, _) in questions.items()}
        bad = [f"question {id}: {questions[id][1]!r}" for id, found in parents.items() if found is None]
        made = tuple(
            Question(id, text, () if bad else parents[id] or (), category)
            for id, (text, _, category) in questions.items()
        )
        graphs.append(Graph(item, prompts[item], made, "; ".join(bad)))
    return tuple(graphs)


@cache
def dsg1k() -> tuple[Graph, ...]:
    """The 1060 items of DSG-1k with their 8182 questions, as packaged."""
    with as_file(files("pixelspace.evaluation.questions").joinpath("dsg-1k-anns.csv.gz")) as path:
        return read_graphs(path)


def _lines(said: str) -> dict[int, str]:
    """`id | text` lines, after `output:` if it stands there."""
    found: dict[int, str] = {}
    for line in said.rpartition("output:")[2].strip().splitlines():
        id, bar, text = (part.strip() for part in line.partition("|"))
        if not bar or not _is_id(id) or not text or "|" in text:
            raise DataError(f"a language model's answer: expected `id | text`, found {line!r:.200}")
        if int(id) in found:
            raise DataError(f"a language model's answer: the id {id} stands twice")
        found[int(id)] = text
    return found


def parse_tuples(said: str) -> dict[int, str]:
    """Kinds by id from lines such as `2 | attribute - color (cat, black)`: what stands before the bracket.

    Raises:
        DataError: a line of another form, or an id twice; so do the other two parsers.
    """
    return {id: text.partition("(")[0].strip() for id, text in _lines(said).items()}


def parse_questions(said: str) -> dict[int, str]:
    """Questions by id from lines such as `2 | Is the cat black?`."""
    return _lines(said)


def parse_dependencies(said: str) -> dict[int, list[int]]:
    """Parents by id from lines such as `3 | 1, 2`, [0] for none. Words among them are left out, and so is a 0 beside
    others, as the reference has it."""
    found: dict[int, list[int]] = {}
    for id, text in _lines(said).items():
        parents = [int(part) for part in re.split(r"\s*,\s*", text) if _is_id(part)]
        if not parents:
            raise DataError(f"a language model's answer: expected ids that {id} depends on, found {text!r:.200}")
        found[id] = [parent for parent in parents if parent] if len(parents) > 1 else parents
    return found


def graph(
    id: str, prompt: str, tuples: Mapping[int, str], questions: Mapping[int, str], dependencies: Mapping[int, list[int]]
) -> Graph:
    """An item of what the three parsers found.

    Raises:
        DataError: they do not speak of the same ids, or a parent is not among them.
    """
    if not tuples.keys() == questions.keys() == dependencies.keys():
        counts = f"{len(tuples)} tuples, {len(questions)} questions and {len(dependencies)} dependencies"
        raise DataError(f"{id}: {counts} have different ids; ask the language model again")
    made = Graph(
        id,
        prompt,
        tuple(
            Question(str(n), text, tuple(str(p) for p in dependencies[n] if p), tuples[n].partition("-")[0].strip())
            for n, text in questions.items()
        ),
    )
    if made.orphaned:
        raise DataError(f"{id}: a question depends on one that is not there; ask the language model again")
    return made
