"""How often an image shows the numbers of things its prompt asks for.

Neither benchmark has an automatic score: GeckoNum's paper has people count. Here a model that answers questions, or a
detector, does; what comes out is called "VQA count accuracy (GeckoNum prompts)" and carries the scorer's name.
`humans.calibration` says how far a scorer agrees with people.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.evaluation.questions.answers import Answers, Images, Key, ask, by_image, image_id
from pixelspace.evaluation.questions.numbers import parse_count
from pixelspace.evaluation.questions.prompts import CountItem, CountPrompts
from pixelspace.evaluation.questions.share import Share, mean, shares

Detector = Callable[[Tensor, str], int]
"""How many of a noun are in an image, uint8 (3, H, W)."""


@value
class CountScore:
    """`question_accuracy` is the share of nouns whose number is exactly right, `image_accuracy` that of images of which
    all nouns are.

    `mean_absolute_error` is over the answers that name a number, None if none does (more than ten is 11); the
    `unreadable` others are wrong. `missing` are images without answers, which are wrong too. `excluded` are prompts of
    the file that do not ask for exact numbers, by type. Values are 0 or 1 and go with `images` and with `questions`
    (image, question).
    """

    name: str
    scorer: str
    question_accuracy: float
    image_accuracy: float
    mean_absolute_error: float | None
    by_type: tuple[Share, ...]
    images_by_type: tuple[Share, ...]
    by_target: tuple[Share, ...]
    unreadable: int
    missing: tuple[str, ...]
    excluded: tuple[tuple[str, int], ...]
    images: tuple[str, ...]
    image_values: tuple[float, ...]
    questions: tuple[tuple[str, str], ...]
    question_values: tuple[float, ...]


def count_objects(
    items: Sequence[CountItem],
    images: Images,
    detector: Detector,
    answers_path: Path,
    progress: Callable[[int, int], None] | None = None,
    seeds: Sequence[str] = ("",),
) -> dict[Key, str]:
    """What a detector counts, as answers in the same file that `answer_questions` writes.

    Raises:
        UserError: it gives anything but a whole number from 0 on; else as `answers.ask`.
    """

    def counted(image: Tensor, noun: str) -> str:
        number = detector(image, noun)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise UserError(f"detector: expected how many {noun!r} there are, from 0 on; found {number!r}")
        return str(number)

    return ask(items, images, lambda image, question: counted(image, question.noun), answers_path, progress, seeds)


def score_counts(prompts: CountPrompts, answers: Answers, *, scorer: str, by: str = "VQA") -> CountScore:
    """The score of answers by the model called `scorer`; `by` says which sort it is in the score's name.

    Raises:
        DataError: naming the image of which only some questions are answered, or no answers at all.
    """
    questions: dict[tuple[str, str], float] = {}
    images: dict[str, float] = {}
    by_type: dict[str, list[float]] = defaultdict(list)
    images_by_type: dict[str, list[float]] = defaultdict(list)
    by_target: dict[int, list[float]] = defaultdict(list)
    errors: list[float] = []
    missing, unreadable = [], 0
    for item, seed, found in by_image(prompts.items, answers):
        image = image_id(item.id, seed)
        if not found:
            missing.append(image)
        right = []
        for question in item.questions:
            number = parse_count(found.get(question.id, ""))
            unreadable += bool(found) and number is None
            if number is not None:
                errors.append(abs(number - question.count))
            right.append(float(number == question.count))
            questions[image, question.id] = right[-1]
            by_target[question.count].append(right[-1])
        by_type[item.type] += right
        images[image] = float(all(right))
        images_by_type[item.type].append(images[image])
    return CountScore(
        name=f"{by} count accuracy ({prompts.name} prompts)",
        scorer=scorer,
        question_accuracy=mean(questions.values()),
        image_accuracy=mean(images.values()),
        mean_absolute_error=mean(errors) if errors else None,
        by_type=shares(by_type),
        images_by_type=shares(images_by_type),
        by_target=shares({str(target): by_target[target] for target in sorted(by_target)}),
        unreadable=unreadable,
        missing=tuple(missing),
        excluded=prompts.excluded,
        images=tuple(images),
        image_values=tuple(images.values()),
        questions=tuple(questions),
        question_values=tuple(questions.values()),
    )
