"""Questions asked about images, and their answers in a CSV file that a broken-off run goes on with.

The file has the columns item_id,question_id,question,answer and, for several images a prompt, seed. It belongs to one
set of images and one model that answers: start another file for another of either.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from pixelspace.config import nearest
from pixelspace.data.decode import decode, read
from pixelspace.data.transforms import to_tensor
from pixelspace.errors import DataError, ResourceError
from pixelspace.evaluation.table import read_table

COLUMNS = ("item_id", "question_id", "question", "answer")
_NAMED = 5  # missing images that a message names


class Asked(Protocol):
    """A question; `id` is unique in its item."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...


Q = TypeVar("Q", bound=Asked, covariant=True)


class Item(Protocol[Q]):
    """A prompt and the questions about its image."""

    @property
    def id(self) -> str: ...
    @property
    def questions(self) -> Sequence[Q]: ...


AnyItem = TypeVar("AnyItem", bound=Item[Any])


class Key(NamedTuple):
    """Which question about which image; `seed` is "" where each prompt has one image."""

    item: str
    question: str
    seed: str = ""


Answers = Mapping[Key, str]
Images = Mapping[str, Path] | Callable[[str], Tensor]
"""By `image_id`: files, or what makes or finds an image, uint8 (3, H, W)."""


def image_id(item: str, seed: str = "") -> str:
    """An image's name: its prompt's, with `_seed` where there are several."""
    return f"{item}_{seed}" if seed else item


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def find_images(folder: Path, items: Sequence[Item[Asked]], seeds: Sequence[str] = ("",)) -> dict[str, Path]:
    """The files `{item}.png`, or `{item}_{seed}.png`, of a folder.

    Raises:
        DataError: naming those that are missing.
    """
    names = [image_id(item.id, seed) for item in items for seed in seeds]
    found = {name: folder / f"{name}.png" for name in names}
    lacking = [path.name for path in found.values() if not path.is_file()]
    if lacking:
        raise DataError(f"{folder}: {len(lacking)} of {len(names)} images are missing: {_named(lacking)}")
    return found


def read_answers(path: Path, items: Iterable[Item[Asked]], generator: str = "") -> dict[Key, str]:
    """Answers as they stand in the file, which must be about these items' questions.

    Files as j-min/DSG released them, with answers about several `t2i_model`s, are read too: `generator` picks one.

    Raises:
        DataError: a question that is unknown, worded otherwise or answered twice, a last line that is cut short, or
            a generator that is not there.
    """
    texts = {(item.id, question.id): question.text for item in items for question in item.questions}
    known = {item for item, _ in texts}
    rows = list(read_table(path, COLUMNS))
    if path.suffix != ".gz" and not path.read_bytes().endswith(b"\n"):
        raise DataError(f"{path}: the last line does not end, so it may be cut short; complete or remove it")
    models = sorted({row["t2i_model"] for _, row in rows if "t2i_model" in row})
    if generator and generator not in models:
        raise DataError(f"{path}: no answers about the generator {generator!r}; {nearest(generator, models)}")
    if not generator and len(models) > 1:
        raise DataError(f"{path}: answers about {', '.join(models)}; say which generator is meant")
    answers: dict[Key, str] = {}
    for where, row in rows:
        if generator and row["t2i_model"] != generator:
            continue
        key = Key(row["item_id"], row["question_id"], row.get("seed", ""))
        if key.item not in known:
            raise DataError(f"{where}: no item {key.item!r} among the prompts; remove the row or give their file")
        text = texts.get((key.item, key.question))
        if text is None:
            raise DataError(f"{where}: {key.item} has no question {key.question!r}; remove the row")
        if text != row["question"]:
            raise DataError(
                f"{where}: {key.item}, question {key.question}: {row['question']!r} was asked, not {text!r}"
            )
        if key in answers:
            said = "the same" if answers[key] == row["answer"] else f"{answers[key]!r} before, {row['answer']!r} here"
            raise DataError(
                f"{where}: {image_id(key.item, key.seed)}, question {key.question} is answered twice: {said}"
            )
        answers[key] = row["answer"]
    return answers


def append_answers(path: Path, rows: Iterable[tuple[Key, str, str]]) -> None:
    """Adds rows of key, question and answer to the file, each on the disk before the next is asked for.

    Raises:
        DataError: the file has other columns, or no column for seeds.
        ResourceError: it cannot be written.
    """

    def write(cells: Iterable[str]) -> None:
        try:
            csv.writer(file, lineterminator="\n").writerow(cells)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error

    try:
        file = path.open("a+", newline="", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
    with file:
        file.seek(0)
        header = tuple(next(csv.reader(file), ()))
        if not header:
            header = (*COLUMNS, "seed")
            write(header)
        elif header not in (COLUMNS, (*COLUMNS, "seed")):
            raise DataError(
                f"{path}: answers are not added to a file with the columns {','.join(header)}; name another"
            )
        for key, question, answer in rows:
            if key.seed and "seed" not in header:
                raise DataError(f"{path}: has no column seed, but images have seeds; name another file")
            write((key.item, key.question, question, answer, key.seed)[: len(header)])


def _pixels(images: Images, name: str) -> Tensor:
    if callable(images):
        return images(name)
    try:
        data = read(images[name])
    except DataError as error:
        raise DataError(f"{images[name]}: {error}") from error
    return to_tensor(decode(data, str(images[name])))


def ask(
    items: Sequence[Item[Q]],
    images: Images,
    answer: Callable[[Tensor, Q], str],
    path: Path,
    progress: Callable[[int, int], None] | None = None,
    seeds: Sequence[str] = ("",),
) -> dict[Key, str]:
    """All answers of `path` after asking what it lacks; answers are lower-cased and stripped.

    `answer` sees an image, uint8 (3, H, W), and a question of the item; `progress` hears how many questions of how
    many are answered.

    Raises:
        DataError: an image that is missing or cannot be read, by name; answers as in `read_answers`.
        ResourceError: `path` cannot be written.
    """
    answers = read_answers(path, items) if path.exists() and path.stat().st_size else {}
    asked = [(item, seed, question) for item in items for seed in seeds for question in item.questions]
    todo = [(item, seed, question) for item, seed, question in asked if Key(item.id, question.id, seed) not in answers]
    if not callable(images):
        lacking = sorted({image_id(item.id, seed) for item, seed, _ in todo} - images.keys())
        if lacking:
            raise DataError(f"images: {len(lacking)} that have questions are missing: {_named(lacking)}")

    def said() -> Iterator[tuple[Key, str, str]]:
        shown, image = None, None
        for done, (item, seed, question) in enumerate(todo, len(asked) - len(todo) + 1):
            if image is None or shown != image_id(item.id, seed):
                shown = image_id(item.id, seed)
                image = _pixels(images, shown)
            key = Key(item.id, question.id, seed)
            answers[key] = answer(image, question).strip().lower()
            yield key, question.text, answers[key]
            if progress is not None:
                progress(done, len(asked))

    append_answers(path, said())
    return answers


def answer_questions(
    items: Sequence[Item[Asked]],
    images: Images,
    vqa: Callable[[Tensor, str], str],
    answers_path: Path,
    progress: Callable[[int, int], None] | None = None,
    seeds: Sequence[str] = ("",),
) -> dict[Key, str]:
    """`ask` by a model that sees an image and the text of a question."""
    return ask(items, images, lambda image, question: vqa(image, question.text), answers_path, progress, seeds)


def by_image(items: Iterable[AnyItem], answers: Answers) -> Iterator[tuple[AnyItem, str, dict[str, str]]]:
    """Each item under each seed that the answers know, with its answers by question: all of them, or none.

    Raises:
        DataError: no answers at all, or an image of which only some questions are answered.
    """
    if not answers:
        raise DataError("answers: there are none to score")
    seeds = sorted({key.seed for key in answers})
    for item in items:
        for seed in seeds:
            keys = [Key(item.id, question.id, seed) for question in item.questions]
            lacking = [key.question for key in keys if key not in answers]
            if lacking and len(lacking) < len(keys):
                raise DataError(
                    f"{image_id(item.id, seed)}: {len(lacking)} of {len(keys)} questions have no answer, the first is "
                    f"{lacking[0]}; ask them with the same answers file"
                )
            yield item, seed, {} if lacking else {key.question: answers[key] for key in keys}
