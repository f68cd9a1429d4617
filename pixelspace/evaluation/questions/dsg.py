"""The score of answers to Davidsonian scene graphs (Cho et al. 2024), as `calc_vqa_score` of j-min/DSG counts it.

An answer counts if it is the string `yes`, and a question whose parent was not answered so counts 0. An image's score
is the mean over its questions, the total the mean over images. Which model answered moves the total more than most
generators do, so that a score carries its name.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pixelspace.config import value
from pixelspace.errors import DataError
from pixelspace.evaluation.questions.answers import Answers, by_image, image_id
from pixelspace.evaluation.questions.graphs import Graph
from pixelspace.evaluation.questions.share import Share, mean, shares

Dependencies = Literal["direct", "transitive", "none"]
"""Which parents zero a question: those that were not answered yes (the published numbers), also those that were zeroed
themselves, or none."""


@value
class GraphScore:
    """Scores lie in [0, 1]; papers give them times 100.

    `images` and `values` are the images and their scores, of which `score` is the mean. `missing` are images without
    answers, which count 0; `malformed` items whose dependencies could not be read; `other` counts answers that are
    neither yes nor no. `by_category` goes by where prompts are from, over images; `by_kind` over questions.
    """

    vqa: str
    dependencies: Dependencies
    score: float
    by_category: tuple[Share, ...]
    by_kind: tuple[Share, ...]
    missing: tuple[str, ...]
    malformed: tuple[str, ...]
    other: int
    images: tuple[str, ...]
    values: tuple[float, ...]


def zeroed(
    answers: Mapping[str, str], parents: Mapping[str, Collection[str]], dependencies: Dependencies = "direct"
) -> frozenset[str]:
    """The questions that count 0 for the sake of a parent, whatever their own answer.

    Raises:
        DataError: a parent without an answer.
    """
    for question, needed in parents.items():
        for parent in needed:
            if parent not in answers:
                raise DataError(f"question {question} depends on {parent}, which has no answer")
    failed = {question for question, answer in answers.items() if answer != "yes"}
    found: frozenset[str] = frozenset()
    while dependencies != "none":
        ahead = failed | found if dependencies == "transitive" else failed
        further = frozenset(question for question, needed in parents.items() if not ahead.isdisjoint(needed))
        if further == found:
            break
        found = further
    return found


def question_scores(
    answers: Mapping[str, str], parents: Mapping[str, Collection[str]], dependencies: Dependencies = "direct"
) -> dict[str, float]:
    """1.0 or 0.0 by question."""
    lost = zeroed(answers, parents, dependencies)
    return {question: float(answer == "yes" and question not in lost) for question, answer in answers.items()}


def score_graphs(
    items: Sequence[Graph], answers: Answers, *, vqa: str, dependencies: Dependencies = "direct"
) -> GraphScore:
    """The score of answers by the model called `vqa`.

    Raises:
        DataError: naming the item: only some of its questions are answered, or a parent is not.
    """
    values: dict[str, float] = {}
    missing: list[str] = []
    by_category: dict[str, list[float]] = defaultdict(list)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for item, seed, found in by_image(items, answers):
        image = image_id(item.id, seed)
        if not found:
            missing.append(image)
        try:
            parents = {question.id: question.parents for question in item.questions} if found else {}
            scores = question_scores(found, parents, dependencies)
        except DataError as error:
            raise DataError(f"{item.id}: {error}; remove its answers, and it counts 0") from error
        values[image] = mean(scores.values())
        by_category[item.category].append(values[image])
        for question in item.questions:
            by_kind[question.category].append(scores.get(question.id, 0.0))
    return GraphScore(
        vqa=vqa,
        dependencies=dependencies,
        score=mean(values.values()),
        by_category=shares(by_category),
        by_kind=shares(by_kind),
        missing=tuple(missing),
        malformed=tuple(item.id for item in items if item.malformed),
        other=sum(answer not in ("yes", "no") for answer in answers.values()),
        images=tuple(values),
        values=tuple(values.values()),
    )
