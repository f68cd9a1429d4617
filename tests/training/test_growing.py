"""Greedy growing as a whole: what is frozen stays, what is let go goes on, and a stop changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from pixelspace.backbones import uvit
from pixelspace.errors import UserError
from pixelspace.growth.freeze import freeze
from pixelspace.nn.weights import digest, load_weights
from pixelspace.recipes.greedy import KEPT
from pixelspace.training import loop
from pixelspace.training.optim import state_by_name
from pixelspace.training.seam import samples
from pixelspace.training.standing import stage_folder
from tests.backbones.cases import CORE, UVIT, conditions
from tests.training.growing import BATCH, SLOW, STEPS, chain, opened, parts_of, recipe, trained

FOLDERS = ("00-core", "01-grown", "02-released")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("growing")
    trained(recipe(), folder)
    return folder


def of_core(tensors):
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("core.", "embed."))}


def owners(moments):
    return {key.rpartition(".")[0] for key in moments}


def begun(whole, folder, stage, step):
    """A copy of the run as a kill leaves it after a checkpoint of a stage, numbered from 0."""
    for done in FOLDERS[:stage]:
        shutil.copytree(whole / done, folder / done)
    kept = Path(FOLDERS[stage]) / "checkpoints" / f"step-{step:08d}"
    shutil.copytree(whole / kept, folder / kept)


def assert_same_bits(run, whole):
    for name in FOLDERS:
        found, expected = parts_of(run / name), parts_of(whole / name)
        assert found.keys() == expected.keys() > {"model", "ema", "optimizer"}
        for part in expected:
            assert digest(found[part]) == digest(expected[part]), f"{name}/{part}"


def test_while_it_is_frozen_a_core_stays_as_it_was_carried_and_all_else_changes(whole, tmp_path):
    told = json.loads((whole / "01-grown" / "transfer.json").read_text())
    source, parts = parts_of(whole / "00-core"), parts_of(whole / "01-grown")
    start = opened(recipe(), whole, "grown", tmp_path).state
    for part, before in (("model", start.network.state_dict()), ("ema", start.average.tensors)):
        kept = of_core(parts[part])
        assert kept.keys() == told["copied"].keys() == of_core(source["ema"]).keys()
        assert digest(kept) == told["copied_sha256"] == digest(of_core(source["ema"]))
        assert digest(kept) != digest(of_core(source["model"]))  # averaged weights are not the last ones
        unchanged = {name for name, tensor in parts[part].items() if torch.equal(tensor, before[name])}
        assert unchanged == kept.keys()
    assert owners(parts["optimizer"]) == parts["model"].keys() - kept.keys()


def test_when_it_is_let_go_a_core_changes(whole):
    before, after = (parts_of(whole / name) for name in FOLDERS[1:])
    for part in ("model", "ema"):
        assert not any(torch.equal(tensor, before[part][name]) for name, tensor in of_core(after[part]).items())
    assert owners(after["optimizer"]) == after["model"].keys()


def grown_with_a_frozen_core():
    torch.manual_seed(0)
    network = replace(UVIT, core=replace(CORE, dropout=0.0)).build()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    freeze(network, KEPT)
    return network


def gradient_of_the_entry(network):
    """The norm of what reaches the first convolution of the encoder."""
    network.zero_grad(set_to_none=True)
    network(torch.randn(2, 3, 16, 24), torch.randn(2), conditions(None, 2)).square().sum().backward()
    gradient = network.patch.weight.grad
    return 0.0 if gradient is None else float(gradient.norm())


def test_gradients_reach_the_encoder_through_a_frozen_core_alone(monkeypatch):
    network = grown_with_a_frozen_core()
    monkeypatch.setattr(uvit, "joined", lambda x, skip: x)
    assert gradient_of_the_entry(network) > 0.1
    assert all(parameter.grad is None for module in (network.core, network.embed) for parameter in module.parameters())
    outside = [p for name, p in network.named_parameters() if not name.startswith(("core.", "embed."))]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in outside)


def test_that_check_notices_a_core_which_lets_nothing_through(monkeypatch):
    network = grown_with_a_frozen_core()
    network.core.register_forward_hook(lambda module, given, out: out.detach())
    assert gradient_of_the_entry(network) > 0.1  # by the skips, which hide it
    monkeypatch.setattr(uvit, "joined", lambda x, skip: x)
    assert gradient_of_the_entry(network) == 0


def test_recomputed_blocks_of_a_frozen_core_let_the_same_gradient_through():
    network, found = grown_with_a_frozen_core(), []
    for again in (False, True):
        network.checkpointing = again
        torch.manual_seed(1)
        found.append(gradient_of_the_entry(network))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_letting_a_core_go_keeps_all_moments_and_adds_the_core_alone(whole, tmp_path):
    state, before = opened(recipe(), whole, "released", tmp_path).state, parts_of(whole / "01-grown")
    moments = state_by_name(state.optimizer)
    assert digest(moments) == digest(before["optimizer"])
    assert {float(t) for key, t in moments.items() if key.endswith(".step")} == {float(STEPS)}
    assert digest(state.network.state_dict()) == digest(before["model"])
    assert digest(state.average.tensors) == digest(before["ema"]) and state.average.updates == STEPS
    held = [name for group in state.optimizer.param_groups for name in group["names"]]
    assert len(held) == len(set(held)) and set(held) - owners(moments) == of_core(before["model"]).keys()
    later = parts_of(whole / "02-released", step=1)["optimizer"]
    steps = {name: float(later[f"{name}.step"]) for name in held}
    assert steps == {name: 1 if name in of_core(steps) else STEPS + 1 for name in held}


def test_a_core_that_is_let_go_learns_at_its_own_rate_after_its_own_warm_up(whole, tmp_path, monkeypatch):
    for done in FOLDERS[:2]:
        shutil.copytree(whole / done, tmp_path / done)
    seen, step = [], loop.train_step

    def watched(state, *given):
        report = step(state, *given)
        seen.append({name: group["lr"] for group in state.optimizer.param_groups for name in group["names"]})
        return report

    monkeypatch.setattr(loop, "train_step", watched)
    trained(recipe(), tmp_path)
    lr = recipe()["released"].optimizer.lr
    for at, rates in enumerate(seen):
        warm = lr * SLOW[0].lr_factor * min((at + 1) * BATCH / SLOW[0].warmup_images, 1)
        expected = {name: warm if name in of_core(rates) else lr for name in rates}
        assert rates == pytest.approx(expected, rel=1e-12)
    assert len(seen) == STEPS and warm < lr


STOPS = [(1, 1), (1, 2), (1, STEPS), (2, 1), (2, 2)]


@pytest.mark.parametrize(("stage", "step"), STOPS)
def test_growing_goes_on_from_any_step_and_over_every_boundary_to_the_same_bits(whole, tmp_path, stage, step):
    begun(whole, tmp_path, stage, step)
    said = trained(recipe(), tmp_path)
    name = recipe().stages[stage].name
    expected = f"resuming {name} at {step * BATCH} images" if step < STEPS else f"stage {name!r} is complete"
    assert any(line.startswith(expected) for line in said)
    assert_same_bits(tmp_path, whole)


def test_growing_that_was_killed_twice_goes_on_to_the_same_bits(whole, tmp_path):
    """In the middle of the frozen stage, and in the first step after it, before anything of that is saved."""
    shutil.copytree(whole / "00-core", tmp_path / "00-core")
    program, environment = (
        Path(__file__).with_name("growing.py"),
        os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    command = [sys.executable, program, tmp_path, "grown:2", "released:0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 2, done.stderr
    steps = [path.parts[-3:] for path in sorted(tmp_path.glob("0[12]*/checkpoints/step-*"))]
    assert steps == [("01-grown", "checkpoints", f"step-{step + 1:08d}") for step in range(STEPS)]
    assert (tmp_path / "02-released" / "transfer.json").is_file()
    assert "stage 'grown' is complete" in trained(recipe(), tmp_path)
    assert_same_bits(tmp_path, whole)


def test_a_stage_begins_with_its_seam_matched_to_the_source(whole, tmp_path):
    run, earlier = opened(recipe(), whole, "grown", tmp_path), recipe()["core"]
    source = earlier.backbone.build()
    load_weights(source, parts_of(whole / "00-core")["ema"])
    ids = [run.order.at(i) for i in range(6)]
    drawn = list(samples(run.stage, run.dataset, ids, run.rng, run.device, run.reader))
    assert [len(batch.x) for batch, _ in drawn] == [4, 2]

    def moments(network, process, ratio):
        """Of what enters the core, by channel, for the noisy images averaged over blocks of ratio x ratio."""
        seen = []
        hook = network.core.register_forward_pre_hook(lambda _, given: seen.append(given[0].transpose(0, 1).flatten(1)))
        with torch.no_grad():
            for batch, draw in drawn:
                noisy = batch.x + draw.sigma[:, None, None, None] * draw.noise
                words = {
                    name: torch.where(draw.drop.reshape(-1, *[1] * (rows.ndim - 1)), batch.null[name], rows)
                    for name, rows in batch.cond.items()
                    if name in batch.null
                }
                small = nn.functional.avg_pool2d(noisy, ratio)
                network.eval()(*process.inputs(small, draw.sigma / ratio), words)
        hook.remove()
        rows = torch.cat(seen, 1)
        return torch.stack([rows.mean(1), rows.std(1, correction=0)])

    seam = run.state.network.seam
    assert not torch.equal(seam.scale, torch.ones_like(seam.scale)) and seam.shift.any()
    assert torch.equal(run.state.average.tensors["seam.scale"], seam.scale)
    assert torch.equal(run.state.average.tensors["seam.shift"], seam.shift)
    wanted = moments(source, earlier.objective.process, 2)
    torch.testing.assert_close(moments(run.state.network, run.stage.objective.process, 1), wanted, rtol=1e-4, atol=1e-5)


def test_a_stage_is_not_trained_further_when_another_has_taken_over(whole):
    run, before = recipe(), sorted(whole.rglob("*"))
    longer = replace(run, stages=tuple(replace(s, images=s.images + BATCH * (s.name == "grown")) for s in run.stages))
    with pytest.raises(UserError, match=r"stage 'grown' stands at 12 of 16 images, and 'released', which took over"):
        trained(longer, whole)
    assert sorted(whole.rglob("*")) == before


def test_a_stage_cannot_end_before_what_it_has_seen(whole, tmp_path):
    begun(whole, tmp_path, 1, STEPS)
    run = recipe()
    shorter = replace(run, stages=tuple(replace(s, images=s.images - BATCH * (s.name == "grown")) for s in run.stages))
    with pytest.raises(UserError, match=r"stage 'grown' has seen 12 images and cannot end, nor its heir begin, at 8;"):
        trained(shorter, tmp_path)
    assert not (tmp_path / "02-released").exists()


def test_growth_in_a_chain_keeps_every_inherited_part_bit_for_bit(tmp_path):
    run = chain()
    trained(run, tmp_path)
    folders = [stage_folder(tmp_path, run, stage.name) for stage in run.stages]
    inherited = []
    for before, folder in pairwise(folders):
        told = json.loads((folder / "transfer.json").read_text())
        source, parts = parts_of(before)["ema"], parts_of(folder)
        assert told["copied"] == {name: name for name in told["copied"]}
        given = {name: source[name] for name in told["copied"]}
        for part in ("model", "ema"):
            assert digest({name: parts[part][name] for name in given}) == told["copied_sha256"] == digest(given)
        assert owners(parts["optimizer"]) == set(told["fresh"])
        inherited.append(set(given))
    first, second, third = inherited
    assert first < second == third
    assert {name.split(".")[0] for name in second - first} == {"seam", "levels"}
    core = [digest(of_core(parts_of(folder)["ema"])) for folder in folders]
    assert len(set(core)) == 1
