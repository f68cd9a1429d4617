"""Prompts that ask for exact numbers of things: GeckoNum (Kajić et al. 2024) and the counting part of Gecko
(Wiles et al. 2024). Their prompts.csv are CC-BY 4.0 and not packaged.

GeckoNum lists what each prompt asks for; its 7 types of exact numbers are used. Gecko does not, so that only the types
whose prompts are lists ("2 trees, 4 parsnips and 2 dogs.") can be read: simple_numeric, additive_2, additive_3. Its
free-form countbench prompts are left out, unless a column `entities` with GeckoNum's notation has been added to the
file. All that is left out is counted.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pixelspace.errors import DataError
from pixelspace.evaluation.questions.numbers import MORE_THAN_TEN, WORDS, plural
from pixelspace.evaluation.table import read_table

SOURCES = "github.com/google-deepmind/geckonum_benchmark_t2i or github.com/google-deepmind/gecko_benchmark_t2i"
EXACT = (
    *("numeric_simple", "numeric_sentence", "attribute-color", "attribute-spatial"),
    *("2-additive", "3-additive", "2-additive-color"),
)
LISTS = ("att/count:simple_numeric", "att/count:additive_2", "att/count:additive_3")
_ELSE = "not about numbers"
_REPEATED = "a noun named twice"
_NUMBER = {**{word: number for number, word in enumerate(WORDS)}, **{str(number): number for number in range(100)}}


@dataclass(frozen=True, slots=True)
class CountQuestion:
    """How many there are of `noun`, of which the prompt asks for `count`. `noun` is as the file has it."""

    id: str
    text: str
    noun: str
    count: int


@dataclass(frozen=True, slots=True)
class CountItem:
    """A prompt; `type` is its type in the file."""

    id: str
    prompt: str
    type: str
    questions: tuple[CountQuestion, ...]


@dataclass(frozen=True, slots=True)
class CountPrompts:
    """Prompts for exact numbers, and how many others the file has, by the reason they are left out."""

    name: str
    items: tuple[CountItem, ...]
    excluded: tuple[tuple[str, int], ...]


def parse_entities(entities: str) -> tuple[tuple[str, str], ...]:
    """Nouns and numbers of `parsnip:2,pizza:3`; numbers as they stand, since those of other types are not whole.

    Raises:
        DataError: with the bare reason.
    """
    found = []
    for part in entities.split(","):
        noun, colon, number = (text.strip() for text in part.partition(":"))
        if not noun or not colon or not number:
            raise DataError(f"expected noun:number, found {part.strip()!r}")
        found.append((noun, number))
    return tuple(found)


def parse_list(prompt: str) -> tuple[tuple[str, str], ...]:
    """Nouns and numbers of a prompt that is a list of them, `five axolotls and 2 couches.`

    Raises:
        DataError: with the bare reason.
    """
    found = []
    for part in re.split(r",\s*|\s+and\s+", prompt.strip().rstrip(".")):
        number, _, noun = part.partition(" ")
        if number.lower() not in _NUMBER or not noun:
            raise DataError(f"expected a number and a noun, found {part!r}")
        found.append((noun.strip(), str(_NUMBER[number.lower()])))
    return tuple(found)


def _questions(where: str, entities: tuple[tuple[str, str], ...], listed: bool) -> tuple[CountQuestion, ...]:
    questions = []
    for index, (noun, number) in enumerate(entities, 1):
        if not number.isascii() or not number.isdecimal() or int(number) >= MORE_THAN_TEN:
            raise DataError(f"{where}: expected a number of {noun!r} from 0 to {MORE_THAN_TEN - 1}, found {number!r}")
        # A list has its nouns in the plural already, but for one of a kind.
        many = noun if listed and number != "1" else plural(noun)
        questions.append(CountQuestion(str(index), f"How many {many} are in the image?", noun, int(number)))
    return tuple(questions)


def read_count_prompts(path: Path) -> CountPrompts:
    """The prompts for exact numbers in GeckoNum's or Gecko's prompts.csv. Ids are GeckoNum's `dataset_id`
    (geckonum_00042) or `gecko_` and Gecko's `prompt_id` (gecko_657).

    Raises:
        DataError: absent (the message says where it is to be had), not one of the two, or a row that cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; get prompts.csv from {SOURCES}")
    rows = list(read_table(path, ("prompt", "prompt_type", "dataset_id")))
    gecko = bool(rows) and "prompt_id" in rows[0][1]
    if not rows or not (gecko or "entities" in rows[0][1]):
        raise DataError(f"{path}: expected prompts.csv of {SOURCES}")
    items: dict[str, CountItem] = {}
    excluded: Counter[str] = Counter()
    for where, row in rows:
        kind = row["dataset_id"] if gecko else row["prompt_type"]
        source = "countbench" if gecko and kind.startswith("countbench_") else kind
        if gecko and not (source == "countbench" or source.startswith("att/count:")):
            excluded[_ELSE] += 1
            continue
        written = row.get("entities", "").strip()
        listed = gecko and not written
        if source not in (LISTS if gecko else EXACT) and not (gecko and written):
            excluded[source] += 1
            continue
        try:
            entities = parse_list(row["prompt"]) if listed else parse_entities(written)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if len({noun for noun, _ in entities}) < len(entities):
            excluded[f"{source}, {_REPEATED}"] += 1
            continue
        id = f"gecko_{row['prompt_id']}" if gecko else row["dataset_id"]
        if id in items:
            raise DataError(f"{where}: the id {id} stands twice")
        items[id] = CountItem(id, row["prompt"], source, _questions(where, entities, listed))
    if not items:
        raise DataError(f"{path}: no prompts for exact numbers")
    return CountPrompts("Gecko" if gecko else "GeckoNum", tuple(items.values()), tuple(sorted(excluded.items())))
