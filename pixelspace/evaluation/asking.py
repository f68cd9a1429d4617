"""Questions about the images of a folder, from their answers to a report."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pixelspace.config import read_json, to_data
from pixelspace.data.decode import read
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.intervals import bootstrap
from pixelspace.evaluation.protocols import Questions
from pixelspace.evaluation.questions.answers import answer_questions, find_images, read_answers
from pixelspace.evaluation.questions.counting import score_counts
from pixelspace.evaluation.questions.dsg import score_graphs
from pixelspace.evaluation.questions.graphs import answerable, dsg1k
from pixelspace.evaluation.questions.humans import calibration, human_accuracy, read_human_counts
from pixelspace.evaluation.questions.prompts import CountPrompts, read_count_prompts
from pixelspace.evaluation.questions.share import Share
from pixelspace.evaluation.report import Report, fingerprint, software, summarised
from pixelspace.evaluation.vqa import PretrainedVQA
from pixelspace.files import publish
from pixelspace.types import Number

_AGAIN = "run the same command again"


def _contents(images: Mapping[str, Path]) -> str:
    """One hash of all files, by name."""
    found = hashlib.sha256()
    for name, path in sorted(images.items()):
        try:
            found.update(f"{name} {hashlib.sha256(read(path)).hexdigest()}\n".encode())
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return found.hexdigest()


def _answers(
    folder: Path, items: Sequence[Any], asked: Sequence[Any], path: Path, vqa: str | None, computing: Computing
) -> tuple[Any, str, list[dict[str, str]]]:
    """Answers by question, who gave them, and the network, if one did."""
    whose = path.with_name(f"{path.name}.network.json")
    before = read_json(whose) if whose.is_file() else None
    if vqa is None:
        if not path.is_file():
            raise UserError(f"answers: {path} is not there yet; name a network that answers by --vqa")
        answers = read_answers(path, items)
        return answers, before["name"] if before else f"answers of {path.name}", [before] if before else []
    images = find_images(folder, asked)
    network = PretrainedVQA(vqa).open(computing.weights, computing.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = {"name": network.name, "sha256": network.sha256, "images sha256": _contents(images)}
    if path.exists() and path.stat().st_size and before != stated:
        raise UserError(f"{path}: holds answers of another network or about other images; name another --answers")
    publish(whose, json.dumps(stated).encode(), _AGAIN)
    with tqdm(desc=f"asking {folder.name}", unit="question", disable=not computing.progress) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return answer_questions(asked, images, network.answer, path, progress), network.name, [stated]


def _shares(prefix: str, shares: Sequence[Share], times: float = 100) -> list[Number]:
    return [Number(f"{prefix} {one.name}", times * one.score, False, {"of": one.count}) for one in shares]


def _sure(name: str, values: Sequence[float], seed: int) -> Number:
    found = bootstrap(100 * torch.tensor(values, dtype=torch.float64), seed=seed)
    return Number(name, found.value, False, {"95% from": found.low, "95% to": found.high, "of": len(values)})


def _dsg(protocol: Questions, answer: Callable[..., Any]) -> tuple[list[Number], Any, list[str], int]:
    items = dsg1k()
    answers, who = answer(items, answerable(items))
    score = score_graphs(items, answers, vqa=who, dependencies=protocol.dependencies)
    numbers = [_sure("DSG", score.values, protocol.seed), *_shares("DSG", score.by_category)]
    notes = [f"{len(score.malformed)} items have malformed dependencies, which are left out: {score.malformed}"]
    if score.missing:
        notes.append(f"{len(score.missing)} images have no answers and count 0: {', '.join(score.missing[:5])}")
    if score.other:
        notes.append(f"{score.other} answers are neither yes nor no, and count as no")
    return numbers, score, notes, len(score.images)


def _count_prompts(prompts: Path | None) -> CountPrompts:
    if prompts is None:
        raise UserError(
            "prompts: counting needs the benchmark's prompts.csv, from google-deepmind/gecko_benchmark_t2i or "
            "google-deepmind/geckonum_benchmark_t2i: give it by --prompts"
        )
    return read_count_prompts(prompts)


def _counting(
    protocol: Questions, answer: Callable[..., Any], prompts: Path | None, human: Path | None
) -> tuple[list[Number], Any, list[str], int]:
    asked, people = _count_prompts(prompts), None if human is None else read_human_counts(human)
    answers, who = answer(asked.items, asked.items)
    score = score_counts(asked, answers, scorer=who)
    numbers = [
        _sure(f"{score.name}, images", score.image_values, protocol.seed),
        _sure(f"{score.name}, questions", score.question_values, protocol.seed),
        *_shares("questions of type", score.by_type),
        *_shares("questions of number", score.by_target),
    ]
    if score.mean_absolute_error is not None:
        numbers.append(Number("mean absolute error", score.mean_absolute_error))
    notes = [f"{count} prompts of {what} are left out" for what, count in score.excluded]
    if score.unreadable:
        notes.append(f"{score.unreadable} answers name no number, and are wrong")
    if score.missing:
        notes.append(f"{len(score.missing)} images have no answers, and are wrong: {', '.join(score.missing[:5])}")
    if people is not None:
        by_people, agreed = human_accuracy(asked.items, people), calibration(asked.items, answers, people)
        numbers += [
            Number("people's count accuracy, questions", 100 * by_people.question_accuracy, False),
            Number("people's count accuracy, images", 100 * by_people.image_accuracy, False),
            Number("agreement with people", 100 * agreed.agreement, False, {"questions": agreed.count}),
        ]
        if agreed.kappa is not None:
            numbers.append(Number("Cohen's kappa with people", agreed.kappa, False, {"questions": agreed.count}))
    return numbers, score, notes, len(score.images)


def prompts_of_items(protocol: Questions, prompts: Path | None) -> dict[str, str]:
    """By what the image of each item is to be drawn; for counting `prompts` are the benchmark's."""
    if protocol.kind == "dsg":
        return {item.id: item.prompt for item in dsg1k()}
    return {item.id: item.prompt for item in _count_prompts(prompts).items}


def ask(
    folder: Path,
    protocol: Questions,
    out: Path,
    computing: Computing,
    *,
    answers: Path | None = None,
    vqa: str | None = None,
    prompts: Path | None = None,
    human: Path | None = None,
) -> Report:
    """Scores the answers to a protocol's questions about `folder`/ITEM.png and writes a report into `out`.

    Answers stand in `answers`, by default in `out`; those that it lacks are asked of the network `vqa`. For counting
    `prompts` are the benchmark's, and `human` people's counts, against which the network's are held.

    Raises:
        UserError: nobody answers, or what counting needs is missing.
        DataError: images are missing, or answers and questions do not belong together.
    """
    if computing.world > 1:
        raise UserError(f"{protocol.name}: questions are asked by one process, found {computing.world}")
    if protocol.kind == "dsg" and (prompts is not None or human is not None):
        raise UserError(f"{protocol.name}: its questions are packaged, and nobody counts; leave out prompts and human")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {protocol.name} looks for images ITEM.png in one")
    began, networks = time.monotonic(), []
    path = out / "answers.csv" if answers is None else answers

    def answer(items: Sequence[Any], asked: Sequence[Any]) -> tuple[Any, str]:
        found, who, used = _answers(folder, items, asked, path, vqa, computing)
        networks.extend(used)
        return found, who

    if protocol.kind == "dsg":
        numbers, score, notes, count = _dsg(protocol, answer)
    else:
        numbers, score, notes, count = _counting(protocol, answer, prompts, human)
    out.mkdir(parents=True, exist_ok=True)
    publish(out / "scores.json", (json.dumps(to_data(score), indent=1) + "\n").encode(), _AGAIN)
    report = Report(
        {
            "protocol": to_data(protocol),
            "fingerprint": fingerprint(protocol),
            "images": {
                "source": str(folder),
                "count": count,
                "answers": str(path),
                "answers sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                **({"prompts": str(prompts)} if prompts is not None else {}),
            },
            "reference": None,
            "networks": networks,
            "numbers": summarised([numbers], ""),
            "notes": notes,
            "software": {**software(computing.device), "seconds": round(time.monotonic() - began, 1)},
        }
    )
    report.save(out)
    return report
