import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixelspace.config import value
from pixelspace.data.loader import divide, read
from pixelspace.errors import UserError
from pixelspace.recipes.text import text_debug
from pixelspace.training import checkpoint, judging
from pixelspace.training.ema import EMA
from pixelspace.training.log import read_metrics
from pixelspace.training.stage import Recipe
from pixelspace.types import Evaluator, Look, Number


@value
class Brightness(Evaluator):
    """How far the mean of drawn images is from that of the training images, and how far their deviation."""

    every_images: int = 24
    best: str = ""
    name: str = "brightness"

    def evaluate(self, look: Look):
        numbers = range(5, 9)
        drawn = look.draw(7, numbers, torch.tensor([0, 1, 2, -1]), ()).double()
        assert look.read is not None and drawn.shape == (4, *look.shape)
        known = look.read(range(min(look.count, 40))).double()
        look.folder.mkdir(parents=True)
        (look.folder / "drawn.txt").write_text(f"{look.drawn} {look.trained_on} {float(drawn.sum())}")
        return (
            Number("mean", abs(float(drawn.mean() - known.mean()))),
            Number("contrast", -abs(float(drawn.std() - known.std())), lower_is_better=False),
        )


@value
class ByCaptions(Evaluator):
    """Draws by held-out captions, one way and the other."""

    every_images: int = 1_000_000
    best: str = ""
    name: str = "captions"

    def evaluate(self, look: Look):
        assert look.held is not None
        captions, none = look.held.captions, torch.tensor([-1, -1])
        straight, turned = (look.draw(7, range(2), none, order) for order in (captions[:2], captions[1::-1]))
        look.folder.mkdir(parents=True)
        images = look.held.read(range(len(captions)))
        torch.save((captions, images, straight, turned), look.folder / "seen.pt")
        return (Number("count", len(captions)),)


def test_a_stage_that_reads_captions_shows_those_it_holds_out(train, tmp_path):
    (stage,) = text_debug().stages
    stage = replace(stage, images=12 * stage.batch, evaluators=(ByCaptions(),))
    lively = replace(stage, optimizer=replace(stage.optimizer, lr=0.05), ema=EMA(max_decay=0.5))
    recipe = Recipe("captions", (lively,))
    train(recipe, tmp_path)
    (path,) = tmp_path.glob("*/evaluation/captions/*/seen.pt")
    captions, images, straight, turned = torch.load(path)
    dataset = stage.data.source.open()
    _, held = divide(dataset, stage.data, recipe.split)
    assert captions == [dataset.texts(index)[0] for index in held.tolist()]
    assert torch.equal(images, read(dataset, held.tolist(), stage.size).images)
    assert not torch.equal(straight, turned)


def judged(tiny: Recipe, *evaluators: Evaluator, **given) -> Recipe:
    return replace(tiny, stages=(replace(tiny.stages[0], evaluators=evaluators, **given),))


def rows(folder: Path, name: str = "brightness"):
    return [{k: v for k, v in row.items() if k != "attempt"} for row in read_metrics(folder, f"evaluation/{name}")]


def test_an_evaluator_judges_in_its_own_time_and_at_the_end(tiny, train, tmp_path):
    train(judged(tiny, Brightness(every_images=40)), tmp_path)
    found = rows(tmp_path / "00-train")
    assert [row["images"] for row in found] == [40, 80, 96]
    assert all(row["best"] == "mean" and row["lower"] for row in found)
    assert (tmp_path / "00-train" / "evaluation-brightness.png").stat().st_size > 5000
    texts = {path.read_text() for path in (tmp_path / "00-train").glob("evaluation/brightness/*/drawn.txt")}
    assert len(texts) == 3


def test_judging_changes_nothing_of_what_is_learnt(tiny, train, tmp_path):
    train(tiny, tmp_path / "plain")
    train(judged(tiny, Brightness(every_images=8)), tmp_path / "judged")
    plain, with_judge = (
        checkpoint.resume(tmp_path / run / "00-train" / "checkpoints").contents.parts for run in ("plain", "judged")
    )
    for part, tensors in plain.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, with_judge[part][name]), f"{part}/{name}"


@pytest.mark.parametrize("best", ["mean", "contrast"])
def test_the_best_checkpoint_stays(tiny, train, tmp_path, best):
    said = train(judged(tiny, Brightness(every_images=8, best=best), keep_every=1000), tmp_path)
    stage = judged(tiny, Brightness(best=best)).stages[0]
    step, name, number = judging.best_steps(stage, tmp_path / "00-train")["brightness"]
    values = {row["step"]: row[best] for row in rows(tmp_path / "00-train")}
    assert len(values) == 12 and name == best
    assert number == values[step] == (min if best == "mean" else max)(values.values())
    kept = {int(path.name[5:]) for path in checkpoint.candidates(tmp_path / "00-train" / "checkpoints")}
    assert kept == {10, 11, 12, step}
    assert f"best {best} so far {number:.5g}, at {step * 8} images" in said[-1]


def test_a_judgement_that_a_stop_cut_short_is_made_on_resume(tiny, train, tmp_path):
    recipe = judged(tiny, Brightness(every_images=48))
    train(recipe, tmp_path)
    stage = tmp_path / "00-train"
    before, metrics = rows(stage), stage / "metrics.jsonl"
    for path in (stage / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > 6:
            shutil.rmtree(path)
    lines = [line for line in metrics.read_text().splitlines() if "evaluation" not in line]
    metrics.write_text("\n".join(lines) + "\n")
    shutil.rmtree(stage / "evaluation")
    train(recipe, tmp_path)
    assert rows(stage) == before


def test_a_number_that_an_evaluator_lacks_cannot_say_what_is_best(tiny, train, tmp_path):
    with pytest.raises(UserError, match=r"brightness has no number 'fid'; .*contrast, mean"):
        train(judged(tiny, Brightness(best="fid")), tmp_path)


def test_two_evaluators_of_one_name_are_refused(tiny):
    with pytest.raises(ValueError, match="two evaluators of one name"):
        judged(tiny, Brightness(), Brightness(every_images=8))
