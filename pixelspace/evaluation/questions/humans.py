"""What people counted in images (GeckoNum's task 1), and how far a scorer agrees with them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pixelspace.config import value
from pixelspace.errors import DataError
from pixelspace.evaluation.questions.answers import Answers, image_id
from pixelspace.evaluation.questions.numbers import MORE_THAN_TEN, parse_count, plural
from pixelspace.evaluation.questions.prompts import CountItem, CountQuestion
from pixelspace.evaluation.questions.share import mean
from pixelspace.evaluation.table import read_table

COLUMNS = ("image_id", "question", "annot_id", "answer")
UNREADABLE = -1  # among the numbers of a confusion: an answer without one


@dataclass(frozen=True, slots=True)
class HumanCount:
    """How many each annotator saw of a noun in an image; None for an answer that is not one whole number."""

    image: str
    question: str
    votes: tuple[int | None, ...]

    @property
    def majority(self) -> int | None:
        """The number that more than half of all annotators saw, or None."""
        number, votes = Counter(self.votes).most_common(1)[0]
        return number if 2 * votes > len(self.votes) else None


def parse_vote(answer: str) -> int | None:
    """A number as annotators write it, up to `MORE_THAN_TEN`, which is also "10+"; None for 2.5, 4-5 or "1,10+"."""
    found = re.fullmatch(r"(\d{1,6})(?:\.0+)?|10\+|>\s*10", answer.strip())
    return None if found is None else min(int(found[1]) if found[1] else MORE_THAN_TEN, MORE_THAN_TEN)


def read_human_counts(path: Path) -> tuple[HumanCount, ...]:
    """The answers of an annotations/task_1_*.csv of google-deepmind/geckonum_benchmark_t2i, by image and question.

    Raises:
        DataError: images of several models in one file, or an annotator who answers a question twice.
    """
    votes: dict[tuple[str, str], dict[str, int | None]] = defaultdict(dict)
    model = None
    for where, row in read_table(path, COLUMNS):
        if (model := model or row.get("model")) != row.get("model"):
            raise DataError(f"{where}: images of {row['model']} after those of {model}; give a file of one model")
        found = votes[row["image_id"], row["question"]]
        if row["annot_id"] in found:
            raise DataError(
                f"{where}: annotator {row['annot_id']} answers {row['question']!r} on {row['image_id']} twice"
            )
        found[row["annot_id"]] = parse_vote(row["answer"])
    if not votes:
        raise DataError(f"{path}: no annotations")
    return tuple(HumanCount(image, question, tuple(found.values())) for (image, question), found in votes.items())


def _wordings(question: CountQuestion) -> tuple[str, ...]:
    nouns = (question.noun, plural(question.noun))
    return question.text.lower(), *(f"how many {noun} are in the image?".lower() for noun in nouns)


@dataclass(frozen=True, slots=True)
class Matched:
    """Human counts of requested nouns by image and question; how many others there are (of nouns whatever their colour
    or place, of images without a prompt); and the images that some noun of was not counted in."""

    counts: Mapping[tuple[str, str], tuple[CountQuestion, HumanCount]]
    other: int
    incomplete: tuple[str, ...]


def match(items: Iterable[CountItem], human: Iterable[HumanCount]) -> Matched:
    """Which human counts are about which question. An image's name is its item's id, with or without `_seed`."""
    by_id = {item.id: item for item in items}
    counts: dict[tuple[str, str], tuple[CountQuestion, HumanCount]] = {}
    items_of: dict[str, CountItem] = {}
    other = 0
    for count in human:
        item = by_id.get(count.image) or by_id.get(count.image.rpartition("_")[0])
        asked = " ".join(count.question.lower().split())
        found = [question for question in item.questions if asked in _wordings(question)] if item else []
        if item is None or not found:
            other += 1
            continue
        items_of[count.image] = item
        counts[count.image, found[0].id] = (found[0], count)
    incomplete = [
        image
        for image, item in items_of.items()
        if any((image, question.id) not in counts for question in item.questions)
    ]
    return Matched(counts, other, tuple(incomplete))


@value
class HumanAccuracy:
    """Shares of questions, and of images by all their nouns, in which most annotators saw the number asked for; `other`
    annotations are about no requested noun, and `incomplete` images, with a noun nobody counted, are left out of the
    images."""

    question_accuracy: float
    image_accuracy: float
    questions: int
    images: int
    other: int
    incomplete: tuple[str, ...]


def human_accuracy(items: Iterable[CountItem], human: Iterable[HumanCount]) -> HumanAccuracy:
    """As people count it: right if a strict majority of annotators saw the number asked for.

    Raises:
        DataError: no annotation is about a noun of these prompts.
    """
    matched = _some(match(items, human))
    right = {key: float(count.majority == question.count) for key, (question, count) in matched.counts.items()}
    images: dict[str, list[float]] = defaultdict(list)
    for (image, _), found in right.items():
        if image not in matched.incomplete:
            images[image].append(found)
    return HumanAccuracy(
        question_accuracy=mean(right.values()),
        image_accuracy=mean([float(all(found)) for found in images.values()]),
        questions=len(right),
        images=len(images),
        other=matched.other,
        incomplete=matched.incomplete,
    )


def _some(matched: Matched) -> Matched:
    if not matched.counts:
        raise DataError(
            f"annotations: none of {matched.other} is about a noun of these prompts in the images of their ids"
        )
    return matched


@value
class Calibration:
    """How a scorer's counts agree with the majority of annotators, on the `count` questions that have both.

    Numbers over ten are one, 11. `confusion` has (human, scorer, how often), with -1 for an answer that names no
    number. `kappa` is Cohen's, None if both always say the same one number. `undecided` questions have no majority,
    `unanswered` no answer of the scorer, `uncounted` no annotation; all three are left out.
    """

    agreement: float
    kappa: float | None
    count: int
    confusion: tuple[tuple[int, int, int], ...]
    undecided: int
    unanswered: int
    uncounted: int


def cohens_kappa(pairs: Mapping[tuple[int, int], int]) -> float | None:
    """(p_o - p_e) / (1 - p_e) of how often two raters gave each pair of labels (Cohen 1960)."""
    total = sum(pairs.values())
    first, second = Counter(), Counter()
    for (one, two), times in pairs.items():
        first[one] += times
        second[two] += times
    observed = sum(times for (one, two), times in pairs.items() if one == two)
    expected = sum(first[label] * second[label] for label in first)
    return None if expected == total * total else (observed * total - expected) / (total * total - expected)


def calibration(items: Iterable[CountItem], answers: Answers, human: Iterable[HumanCount]) -> Calibration:
    """The scorer's `answers` against people's.

    Raises:
        DataError: no question has both.
    """
    items = tuple(items)
    matched = _some(match(items, human))
    said = {(image_id(key.item, key.seed), key.question): answer for key, answer in answers.items()}
    pairs: Counter[tuple[int, int]] = Counter()
    undecided = unanswered = 0
    for key, (_, count) in matched.counts.items():
        if count.majority is None:
            undecided += 1
        elif key not in said:
            unanswered += 1
        else:
            number = parse_count(said[key])
            pairs[count.majority, UNREADABLE if number is None else min(number, MORE_THAN_TEN)] += 1
    if not pairs:
        raise DataError("calibration: no question has both an answer and a majority of annotators")
    total = pairs.total()
    return Calibration(
        agreement=sum(times for (one, two), times in pairs.items() if one == two) / total,
        kappa=cohens_kappa(pairs),
        count=total,
        confusion=tuple((one, two, times) for (one, two), times in sorted(pairs.items())),
        undecided=undecided,
        unanswered=unanswered,
        uncounted=len(said.keys() - matched.counts.keys()),
    )
