import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pixelspace.data.buckets import Buckets
from pixelspace.data.emoji import Emoji
from pixelspace.data.folder import Folder
from pixelspace.data.keep import Keep
from pixelspace.data.loader import divide
from pixelspace.errors import CheckpointError, NumericalError, Stopped, UserError
from pixelspace.objectives.denoising import Denoising
from pixelspace.training import checkpoint, loop
from pixelspace.training.inherit import Given
from pixelspace.training.log import read_metrics
from pixelspace.training.stage import Inherit, Recipe
from tests.data.image_folders import draw


def parts_of(folder):
    return checkpoint.resume(folder / "checkpoints").contents.parts


def assert_same_bits(a, b):
    assert a.keys() == b.keys() == {"model", "ema", "optimizer"}
    for part in a:
        assert a[part].keys() == b[part].keys()
        for name, tensor in a[part].items():
            assert torch.equal(tensor, b[part][name]), f"{part}/{name}"


def losses(folder):
    return [(row["step"], row["loss"], row["grad_norm"], row["lr"]) for row in read_metrics(folder, "train")]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    loop.run_recipe(tiny, folder, device=torch.device("cpu"), progress=False, say=lambda text: None)
    return folder / "00-train"


def begun(whole, folder, step):
    """A copy of the run as a kill after `step` would leave it."""
    stage = folder / "00-train"
    (stage / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / f"step-{step:08d}", stage / "checkpoints" / f"step-{step:08d}")
    rows = (whole / "metrics.jsonl").read_text().splitlines()
    kept = [row for row in rows if json.loads(row)["step"] <= step + 1]  # the killed step may have logged
    (stage / "metrics.jsonl").write_text("".join(row + "\n" for row in kept) + '{"kind": "tra')
    return stage


@pytest.mark.parametrize("step", range(1, 12))
def test_a_run_goes_on_from_any_step_to_the_same_bits(tiny, train, whole, tmp_path, step):
    stage = begun(whole, tmp_path, step)
    said = train(tiny, tmp_path)
    assert f"resuming train at {step * 8} images" in said[0]
    assert_same_bits(parts_of(stage), parts_of(whole))
    assert losses(stage) == losses(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tiny, train, whole, tmp_path, workers):
    (stage,) = tiny.stages
    stage = replace(stage, data=replace(stage.data, workers=workers))
    begun(whole, tmp_path, 8)
    train(replace(tiny, stages=(stage,)), tmp_path)
    assert_same_bits(parts_of(tmp_path / "00-train"), parts_of(whole))


def test_micro_batches_learn_the_same_to_rounding(tiny, train, tmp_path):
    (stage,) = tiny.stages
    levels = tuple(replace(level, dropout=0.0) for level in stage.backbone.levels)
    stage = replace(stage, backbone=replace(stage.backbone, levels=levels))
    found = []
    for micro in (0, 2):
        train(replace(tiny, stages=(replace(stage, micro=micro),)), tmp_path / str(micro))
        found.append([loss for _, loss, *_ in losses(tmp_path / str(micro) / "00-train")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_checkpointing_and_previews_do_not_change_the_weights(tiny, train, whole, tmp_path):
    (stage,) = tiny.stages
    stage = replace(stage, checkpointing=True, sample_images=8, validate_images=8)
    train(replace(tiny, stages=(stage,)), tmp_path)
    assert_same_bits(parts_of(tmp_path / "00-train"), parts_of(whole))


def test_another_seed_learns_something_else(tiny, train, whole, tmp_path):
    train(replace(tiny, seed=1), tmp_path)
    assert losses(tmp_path / "00-train")[0][1] != losses(whole)[0][1]


def test_a_run_leaves_what_people_look_at(whole):
    assert (whole / "samples" / "0000000096.png").is_file() and (whole / "loss.png").is_file()
    held = read_metrics(whole, "validation")
    assert [row["images"] for row in held] == [0, 48, 96]
    row = read_metrics(whole, "train")[-1]
    assert len(row["octiles"]) == 8 and row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1
    assert all(a["peak_bytes"] <= b["peak_bytes"] for a, b in pairwise(read_metrics(whole, "train")))


def test_a_complete_run_is_left_alone(tiny, train, whole):
    before = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert train(tiny, whole.parent) == ["stage 'train' is complete"]
    assert before == sorted(path.name for path in (whole / "checkpoints").iterdir())


def test_eight_images_are_learnt_by_heart(tiny, train, tmp_path):
    (stage,) = tiny.stages
    stage = replace(
        stage,
        backbone=replace(stage.backbone, num_classes=0),
        objective=replace(stage.objective, drop_rate=0.0),
        data=replace(stage.data, source=Emoji(("activities",)), holdout=0.9, crop="center", flip=False),
        images=8 * 300,
        optimizer=replace(stage.optimizer, lr=3e-3),
        save_images=8 * 300,
        validate_images=8 * 300,
        sample_images=8 * 300,
        log_steps=50,
    )
    train(replace(tiny, stages=(stage,)), tmp_path)
    curve = [row["loss"] for row in read_metrics(tmp_path / "00-train", "train")]
    assert curve[-1] < 0.35 * curve[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_this_very_step_and_the_run_goes_on(tiny, train, whole, tmp_path, monkeypatch, number):
    step = loop.train_step

    def interrupted(state, *given):
        if state.step == 5:
            os.kill(os.getpid(), number)
        return step(state, *given)

    (stage,) = tiny.stages
    rare = replace(tiny, stages=(replace(stage, save_images=960),))
    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(Stopped, match="at 48 of 96 images, checkpoint saved; the same command goes on"):
        train(rare, tmp_path)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "00-train" / "checkpoints").glob("step-*")] == ["step-00000006"]
    train(rare, tmp_path)
    assert_same_bits(parts_of(tmp_path / "00-train"), parts_of(whole))


def exploding_at(steps):
    """The real loss, made infinite at some steps."""
    real = Denoising.loss

    def loss(objective, backbone, batch, draw):
        found = real(objective, backbone, batch, draw)
        return found * float("inf") if int(batch.pos[0]) // 8 in steps else found

    return loss


def test_a_step_that_is_not_finite_changes_nothing_and_is_described(tiny, train, tmp_path, monkeypatch):
    monkeypatch.setattr(Denoising, "loss", exploding_at({4}))
    said = train(tiny, tmp_path)
    stage = tmp_path / "00-train"
    assert any("step 4: loss inf" in line for line in said)
    before, after = (checkpoint.store.read(stage / "checkpoints" / f"step-{s:08d}", kind="checkpoint") for s in (4, 5))
    assert_same_bits(before.parts, after.parts)
    assert (before.state["step"], after.state["step"], after.state["bad_steps"]) == (4, 5, [4])
    replay = json.loads((stage / "replay" / "step-00000004.json").read_text())
    assert [sample["pos"] for sample in replay["samples"]] == list(range(32, 40))
    assert all(sample["sigma"] > 0 and sample["name"] for sample in replay["samples"])


def test_too_many_such_steps_stop_the_run(tiny, train, tmp_path, monkeypatch):
    monkeypatch.setattr(Denoising, "loss", exploding_at(range(3, 12)))
    (stage,) = tiny.stages
    with pytest.raises(
        NumericalError, match=r"3 steps of the last 100 .*2 allowed.*step-00000005\.json.*optimizer\.lr"
    ):
        train(replace(tiny, stages=(replace(stage, bad_steps=2),)), tmp_path)
    assert checkpoint.newest(tmp_path / "00-train" / "checkpoints")[0].name == "step-00000005"


def test_a_later_stage_carries_weights_average_and_moments(tiny, train, tmp_path):
    (stage,) = tiny.stages
    stage = replace(stage, images=16)
    second = replace(
        stage, name="second", batch=16, images=16, init=Inherit("train", weights="raw", ema="carry", optimizer=True)
    )
    third = replace(stage, name="third", images=8, init=Inherit("second"))
    train(Recipe("three", (stage, second, third)), tmp_path)
    first, later = parts_of(tmp_path / "00-train"), parts_of(tmp_path / "01-second")
    assert float(first["optimizer"]["patch_in.proj.weight.step"]) == 2
    assert float(later["optimizer"]["patch_in.proj.weight.step"]) == 3
    state = checkpoint.resume(tmp_path / "01-second" / "checkpoints").contents.state
    assert state["ema_updates"] == 3
    assert checkpoint.resume(tmp_path / "02-third" / "checkpoints").contents.state["ema_updates"] == 1


def test_a_stage_without_its_ancestor_is_refused(tiny, train, tmp_path):
    (stage,) = tiny.stages
    second = replace(stage, name="second", init=Inherit("train"))
    with pytest.raises(CheckpointError, match="stage 'train' has no checkpoint to inherit"):
        train(Recipe("two", (stage, second)), tmp_path, first="second")


def test_weights_given_start_the_first_stage(tiny, train, whole, tmp_path):
    (stage,) = tiny.stages
    weights = parts_of(whole)["ema"]
    slow = replace(stage, images=8, optimizer=replace(stage.optimizer, lr=1e-12, weight_decay=0.0))
    given = Given("whole", weights, stage.backbone, stage.codec, stage.objective.process, stage.size)
    train(replace(tiny, stages=(slow,)), tmp_path, given=given)
    for name, tensor in parts_of(tmp_path / "00-train")["model"].items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-6)


def test_changed_data_is_refused_on_resume(tiny, train, whole, tmp_path):
    begun(whole, tmp_path, 5)
    (stage,) = tiny.stages
    other = replace(stage, data=replace(stage.data, source=Emoji(("food", "animals"))))
    with pytest.raises(UserError, match=r"the data has changed since step-00000005: 1500 samples then, 285 now"):
        train(replace(tiny, stages=(other,)), tmp_path)


def test_classes_of_data_and_network_must_fit(tiny, train, tmp_path):
    (stage,) = tiny.stages
    few = replace(stage, backbone=replace(stage.backbone, num_classes=3))
    with pytest.raises(UserError, match="the data has 8 classes, the network room for 3"):
        train(replace(tiny, stages=(few,)), tmp_path)


def test_a_damaged_newest_checkpoint_is_named_and_an_older_one_taken(tiny, train, whole, tmp_path):
    stage = begun(whole, tmp_path, 6)
    shutil.copytree(whole / "checkpoints" / "step-00000007", stage / "checkpoints" / "step-00000007")
    path = stage / "checkpoints" / "step-00000007" / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    said = train(tiny, tmp_path)
    assert "refused" in said[0] and "ema.safetensors" in said[0] and "step-00000006" in said[1]
    assert_same_bits(parts_of(stage), parts_of(whole))


@pytest.fixture
def shapes(tiny, tmp_path):
    """The tiny stage on a folder of images of many shapes, in batches of one shape each."""
    for i in range(40):
        draw(tmp_path / "images" / f"{i % 2}" / f"{i:02d}.png", 20 + i % 7 * 9, 20 + i % 5 * 11, seed=i)
    (stage,) = tiny.stages
    data = replace(stage.data, source=Folder(str(tmp_path / "images")), keep=(Keep("side", 21),))
    side = stage.size[0]
    return replace(tiny, stages=(replace(stage, data=replace(data, buckets=Buckets(side // 4, 3.0))),))


def test_batches_of_several_shapes_are_learnt_and_resumed_to_the_same_bits(shapes, train, tmp_path, monkeypatch):
    seen, step = [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *given: seen.append(given[3].images.shape) or step(*given))
    said = train(shapes, tmp_path / "whole")
    assert said[0].startswith("keep side >= 21: ") and said[1].startswith("buckets of height x width")
    assert len(set(seen)) > 1 and len(read_metrics(tmp_path / "whole" / "00-train", "validation")) == 3
    stage = begun(tmp_path / "whole" / "00-train", tmp_path / "again", 5)
    train(shapes, tmp_path / "again")
    assert_same_bits(parts_of(stage), parts_of(tmp_path / "whole" / "00-train"))


def test_a_compiled_network_has_a_graph_for_each_shape_of_a_batch_and_no_other(shapes, train, tmp_path, monkeypatch):
    seen, step = set(), loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *given: seen.add(given[3].images.shape) or step(*given))
    graphs = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))  # quicker, and it counts
    (stage,) = shapes.stages
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        train(replace(shapes, stages=(replace(stage, compile=True, images=6 * stage.batch),)), tmp_path)
    assert graphs.frame_count == len(seen) > 1


def test_a_bucket_that_the_network_cannot_hold_is_refused_before_anything_is_trained(shapes, train, tmp_path):
    (stage,) = shapes.stages
    odd = replace(shapes, stages=(replace(stage, data=replace(stage.data, buckets=Buckets(2, 3.0))),))
    with pytest.raises(UserError, match=r"stage 'train': data.buckets gives \d+x\d+: image .* needs a multiple of"):
        train(odd, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("step-*"))


def test_all_stages_hold_out_the_same_samples(tiny, train, tmp_path, monkeypatch):
    (stage,), split = tiny.stages, []
    monkeypatch.setattr(loop, "divide", lambda *given: split.append(divide(*given)) or split[-1])
    stage = replace(stage, images=8, data=replace(stage.data, holdout=0.2))
    train(Recipe("two", (stage, replace(stage, name="second", init=Inherit("train")))), tmp_path)
    (train_ids, held), (later, later_held) = split
    assert train_ids.tolist() == later.tolist() and held.tolist() == later_held.tolist() and len(held)
