import json
import shutil
from dataclasses import replace

import pytest
import torch

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.errors import CheckpointError, UserError
from pixelspace.growth.transfer import IDENTITY, Rule
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.nn.weights import digest
from pixelspace.recipes.greedy import GROWN, KEPT
from pixelspace.training import checkpoint
from pixelspace.training.ema import EMA
from pixelspace.training.inherit import Given, planned, take
from pixelspace.training.optim import Group, state_by_name
from pixelspace.training.stage import Inherit, Recipe
from tests.training.growing import BATCH, STEPS, opened, parts_of, recipe, trained

FRESH_HEAD = (Rule("shallow.head.*", fresh=True), Rule("*"))


def changed(name, **changes):
    """The toy recipe with other settings in one stage."""
    return replace(recipe(), stages=tuple(replace(s, **changes) if s.name == name else s for s in recipe().stages))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has its core."""
    folder = tmp_path_factory.mktemp("inherit")
    trained(Recipe("core", recipe().stages[:1]), folder)
    return folder


def told(folder):
    return json.loads((folder / "transfer.json").read_text())


def again(ancestor="core", **changes):
    """The toy core, and a second stage of the same network that inherits from it."""
    core = recipe()["core"]
    second = replace(core, name="second", init=Inherit(ancestor), save_images=BATCH)
    return Recipe("again", (core, replace(second, **changes)))


def test_what_is_planned_is_what_is_done(run, tmp_path):
    plans = planned(recipe())
    assert list(plans) == ["core", "grown", "released"]
    assert plans["core"].report is None and plans["core"].frozen == plans["released"].frozen == ()
    report = plans["grown"].report
    assert {name.split(".")[0] for name in report.copied} == {"core", "embed"}
    assert set(plans["grown"].frozen) == set(report.copied) and not report.resized
    assert {name.split(".")[0] for name in report.fresh} == {"patch", "levels", "seam", "head"}
    assert {name.split(".")[0] for name in report.unused} == {"shallow"}
    assert len(plans["released"].report.copied) == len(report.copied) + len(report.fresh)
    begun = opened(recipe(), run, "grown", tmp_path)
    done = told(tmp_path)
    assert (done["copied"], tuple(done["fresh"]), sorted(done["unused"])) == (
        report.copied,
        report.fresh,
        sorted(report.unused),
    )
    still = {name for name, parameter in begun.state.network.named_parameters() if not parameter.requires_grad}
    assert still == set(plans["grown"].frozen)


NO_SEAM = replace(recipe()["grown"].backbone, seam="none")
HDIT = HDiTConfig(
    (Level(8, 1, Neighborhood(8, kernel=3)), Level(16, 1, Global(8))), patch=(2, 2), mapping_width=8, num_classes=8
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"init": Inherit("core", (Rule("cor.*"), *GROWN))},
            r"^stage 'grown' \(from 'core'\): rule 'cor\.\*' covers nothing: .* did you mean 'core\.\*'\?",
        ),
        (
            {"init": Inherit("core")},
            r"^stage 'grown' \(from 'core'\): patch\.weight: rule '\*' asks for 'patch\.weight'",
        ),
        (
            {"freeze": ("cor.*",)},
            r"^stage 'grown': freeze: 'cor\.\*' covers nothing of the network; did you mean 'core",
        ),
        ({"freeze": ("*",)}, r"^stage 'grown': freeze: '\*' cover all \d+ parameters; leave some to learn"),
        (
            {"optimizer": replace(recipe()["grown"].optimizer, groups=(Group("core.*", 0.1),))},
            r"^stage 'grown': optimizer\.groups: 'core\.\*' covers nothing that learns; .*its parts are head, levels, ",
        ),
        (
            {"backbone": NO_SEAM},
            r"^stage 'grown': init\.match_images sets an affine seam that starts fresh, and this network has none; set",
        ),
    ],
    ids=["rule", "absent", "freeze", "all frozen", "group", "seam"],
)
def test_what_does_not_fit_is_refused_by_its_stage_before_anything_is_trained(tmp_path, changes, message):
    bad = changed("grown", **changes)
    with pytest.raises(UserError, match=message):
        planned(bad)
    with pytest.raises(UserError, match=message):
        trained(bad, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_seam_is_matched_only_to_a_network_that_has_a_core():
    core, grown, _ = recipe().stages
    plain = replace(core, backbone=HDIT, text=None)
    rules = (Rule("*", fresh=True),)
    with pytest.raises(UserError, match=r"^stage 'grown': init\.match_images .* stage 'core' has no core"):
        planned(Recipe("odd", (plain, replace(grown, init=Inherit("core", rules, match_images=4)))))


def test_what_a_stage_takes_over_is_written_down_with_its_hash(run, tmp_path):
    begun, source = opened(recipe(), run, "grown", tmp_path), parts_of(run / "00-core")
    found, own = told(tmp_path), begun.state.network.state_dict()
    assert (found["stage"], found["source"]) == ("grown", "core")
    assert sorted([*found["copied"], *found["resized"], *found["fresh"]]) == sorted(own)
    assert sorted([*found["copied"].values(), *found["unused"]]) == sorted(source["model"])
    assert found["copied_sha256"] == digest({name: own[name] for name in found["copied"]})
    assert found["copied_sha256"] == digest({name: source["ema"][there] for name, there in found["copied"].items()})


@pytest.mark.parametrize(("weights", "part"), [("ema", "ema"), ("raw", "model")])
@pytest.mark.parametrize("average", ["fresh", "carry"])
def test_frozen_weights_are_those_that_were_asked_for(run, tmp_path, weights, part, average):
    """And the average of what does not learn is the weight, whatever it was where it comes from."""
    init = Inherit("core", GROWN, weights=weights, ema=average)
    state = opened(changed("grown", init=init), run, "grown", tmp_path).state
    source = parts_of(run / "00-core")[part]
    for tensors in (state.network.state_dict(), state.average.tensors):
        carried = {name: tensors[name] for name in told(tmp_path)["copied"]}
        assert digest(carried) == digest({name: source[name] for name in carried}) == told(tmp_path)["copied_sha256"]


@pytest.mark.parametrize(("weights", "part"), [("ema", "ema"), ("raw", "model")])
@pytest.mark.parametrize("average", ["fresh", "carry"])
def test_weights_and_averages_are_those_that_were_asked_for(run, tmp_path, weights, part, average):
    init, source = Inherit("core", weights=weights, ema=average), parts_of(run / "00-core")
    state = opened(again(init=init), run, "second", tmp_path).state
    assert digest(state.network.state_dict()) == digest(source[part])
    assert digest(state.average.tensors) == digest(source["ema" if average == "carry" else part])
    assert state.average.updates == (STEPS if average == "carry" else 0)
    assert not state_by_name(state.optimizer) and not state.average.born


def test_a_fresh_tensor_s_average_counts_from_its_birth_and_a_carried_one_goes_on(run, tmp_path):
    """With power 1 the average is the mean of the weights after each step, of a fresh tensor since it came in."""
    init = Inherit("core", FRESH_HEAD, weights="raw", ema="carry")
    plan = again(init=init, ema=EMA(1.0, 1.0))
    shutil.copytree(run / "00-core", tmp_path / "00-core")
    trained(plan, tmp_path)
    second, old = tmp_path / "01-second", parts_of(run / "00-core")["ema"]
    steps = [parts_of(second, step)["model"] for step in range(1, STEPS + 1)]
    averaged, state = parts_of(second)["ema"], checkpoint.resume(second / "checkpoints").contents.state
    assert state["ema_updates"] == 2 * STEPS
    assert state["ema_born"] == dict.fromkeys(told(second)["fresh"], STEPS)
    assert set(state["ema_born"]) == {name for name in old if name.startswith("shallow.head.")}
    for name, found in averaged.items():
        seen = [step[name].double() for step in steps]
        seen += [] if name in state["ema_born"] else [old[name].double()] * STEPS
        torch.testing.assert_close(found.double(), torch.stack(seen).mean(0), rtol=1e-5, atol=1e-7)


def test_births_are_kept_on_resume_and_handed_on(run, tmp_path):
    plan = again(init=Inherit("core", FRESH_HEAD, weights="raw", ema="carry"))
    third = replace(plan["second"], name="third", init=Inherit("second", weights="raw", ema="carry"))
    plan = replace(plan, stages=(*plan.stages, third))
    shutil.copytree(run / "00-core", tmp_path / "whole" / "00-core")
    trained(plan, tmp_path / "whole")
    second = tmp_path / "whole" / "01-second"
    shutil.copytree(run / "00-core", tmp_path / "again" / "00-core")
    kept = "01-second/checkpoints/step-00000001"
    shutil.copytree(tmp_path / "whole" / kept, tmp_path / "again" / kept)
    trained(plan, tmp_path / "again")
    for name in ("01-second", "02-third"):
        found, expected = parts_of(tmp_path / "again" / name), parts_of(tmp_path / "whole" / name)
        assert {part: digest(found[part]) for part in found} == {part: digest(expected[part]) for part in expected}
    births = [
        checkpoint.resume(folder / "checkpoints").contents.state["ema_born"]
        for folder in (second, tmp_path / "again" / "01-second", tmp_path / "again" / "02-third")
    ]
    assert births[0] == births[1] == births[2] != {}


def test_all_that_learns_round_a_frozen_core_may_be_fresh_in_a_carried_average(run, tmp_path):
    shutil.copytree(run / "00-core", tmp_path / "00-core")
    grown = replace(recipe()["grown"], init=Inherit("core", GROWN, ema="carry"), images=BATCH)
    trained(Recipe("grown", (recipe()["core"], grown)), tmp_path)
    parts = parts_of(tmp_path / "01-grown")
    assert digest(parts["ema"]) == digest(parts["model"])  # the first update copies


PARTS = ("down_levels", "up_levels", "merges", "splits")
OUTER = (*(f"{part}.0" for part in PARTS), "patch_in", "patch_out", "out_norm")
OUTWARDS = (
    *(Rule(f"{part}.*", fresh=True) for part in OUTER),
    *(Rule(f"{part}.1.*", prefix=(f"{part}.1.", f"{part}.0.")) for part in PARTS),
    Rule("*"),
)


def test_moments_follow_the_names_that_rules_exchange(tmp_path):
    """A level round a trained HDiT: what was its first is then its second."""
    core = replace(recipe()["core"], name="coarse", backbone=HDIT, text=None, size=(16, 16))
    finer = replace(HDIT, levels=(Level(8, 1, Neighborhood(8, kernel=3)), *HDIT.levels))
    init = Inherit("coarse", OUTWARDS, weights="raw", ema="carry", optimizer=True)
    plan = Recipe("outwards", (core, replace(core, name="fine", backbone=finer, init=init)))
    trained(replace(plan, stages=plan.stages[:1]), tmp_path)
    state, before = opened(plan, tmp_path, "fine", tmp_path).state, parts_of(tmp_path / "00-coarse")
    found, moments = told(tmp_path), state_by_name(state.optimizer)
    assert any(name.startswith("down_levels.1.") for name in found["copied"])
    learnt = {key.rpartition(".")[0] for key in before["optimizer"]}
    expected = {
        f"{name}.{moment}": before["optimizer"][f"{there}.{moment}"]
        for name, there in found["copied"].items()
        if there in learnt
        for moment in ("step", "exp_avg", "exp_avg_sq")
    }
    assert digest(moments) == digest(expected) and len(expected) > 30
    assert not any(key.startswith(OUTER) for key in moments)
    for name, there in found["copied"].items():
        assert torch.equal(state.network.state_dict()[name], before["model"][there]), name
        assert torch.equal(state.average.tensors[name], before["ema"][there]), name


def test_moments_of_what_is_frozen_are_left_behind(run, tmp_path):
    frozen = again(init=Inherit("core", optimizer=True), freeze=KEPT)
    moments = state_by_name(opened(frozen, run, "second", tmp_path).state.optimizer)
    before = parts_of(run / "00-core")["optimizer"]
    assert digest(moments) == digest({key: t for key, t in before.items() if key.startswith("shallow.")})


def test_an_ancestor_that_is_not_trained_to_its_end_is_refused(run, tmp_path):
    core = replace(recipe()["core"], images=2 * STEPS * BATCH)
    longer = replace(recipe(), stages=(core, *recipe().stages[1:]))
    message = (
        r"^stage 'grown' inherits from 'core', which stands at 12 of 24 images; train it to its end first, "
        r"or take the weights as they are by --from .*00-core/checkpoints/step-00000003$"
    )
    with pytest.raises(UserError, match=message):
        opened(longer, run, "grown", tmp_path)


def test_an_ancestor_that_went_beyond_its_end_is_refused(run, tmp_path):
    shorter = replace(recipe(), stages=(replace(recipe()["core"], images=BATCH), *recipe().stages[1:]))
    with pytest.raises(UserError, match=r"^stage 'grown' inherits from 'core', which stands at 12 of 4 images; "):
        opened(shorter, run, "grown", tmp_path)


def test_an_ancestor_whose_last_checkpoint_is_damaged_is_refused_and_named(run, tmp_path):
    plan = again()
    shutil.copytree(run / "00-core", tmp_path / "00-core")
    trained(plan, tmp_path)
    damaged = tmp_path / "01-second" / "checkpoints" / "step-00000003" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    third = replace(plan["second"], name="third", init=Inherit("second"))
    plan = replace(plan, stages=(*plan.stages, third))
    message = r"'second', which stands at 8 of 12 images \(.*step-00000003.*model\.safetensors.*: move it away\); train"
    with pytest.raises(UserError, match=message):
        trained(plan, tmp_path)
    shutil.rmtree(damaged.parent)
    trained(plan, tmp_path)
    assert len(parts_of(tmp_path / "02-third")) == 4


def test_an_ancestor_that_was_never_trained_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"01-grown: stage 'grown' has no checkpoint to inherit; train it first"):
        opened(recipe(), tmp_path, "released", tmp_path)


def given(run, name="core", codec=None):
    stage = recipe()[name]
    weights, process = parts_of(run / "00-core")["ema"], stage.objective.process
    return Given("a model", weights, stage.backbone, codec or stage.codec, process, stage.size)


def test_weights_that_fit_are_taken_whole_whatever_the_rules(run):
    core = again(init=Inherit("core", FRESH_HEAD))["second"]
    network = core.backbone.build()
    report = take(network, core, given(run))
    assert digest(network.state_dict()) == digest(given(run).weights)
    assert not report.fresh and not report.unused and set(report.copied) == set(given(run).weights)


def test_weights_of_another_network_are_taken_by_the_stage_s_rules(run):
    grown = recipe()["grown"]
    network = grown.backbone.build()
    report = take(network, grown, given(run))
    wanted = planned(recipe())["grown"].report
    assert (report.copied, report.fresh, set(report.unused)) == (wanted.copied, wanted.fresh, set(wanted.unused))
    own = network.state_dict()
    assert all(torch.equal(own[name], given(run).weights[there]) for name, there in report.copied.items())


def test_weights_of_another_network_are_refused_where_no_rules_say_how(run):
    grown = replace(recipe()["grown"], init=None, freeze=())
    with pytest.raises(CheckpointError, match=r"stage 'grown' from a model: the weights are of another architecture"):
        take(grown.backbone.build(), grown, given(run))


def test_weights_that_learnt_another_range_of_data_are_refused(run):
    core = recipe()["core"]
    with pytest.raises(
        UserError, match=r"stage 'core' works on Pixels, and a model learnt another range of data \(KLVAE"
    ):
        take(core.backbone.build(), core, given(run, codec=KLVAE()))


def test_a_recipe_whose_stages_work_on_other_data_is_refused():
    core = recipe()["core"]
    latents = replace(core, codec=KLVAE(), backbone=replace(core.backbone, channels=4), size=(64, 64))
    with pytest.raises(
        ValueError, match=r"stage 'second' works on KLVAE and inherits from 'core', which learnt another"
    ):
        Recipe("odd", (core, replace(latents, name="second", init=Inherit("core"))))


def test_weights_given_start_a_grown_stage_without_its_ancestor(run, tmp_path):
    grown = replace(recipe()["grown"], images=BATCH)
    plan = Recipe("grown", (recipe()["core"], grown))
    said = trained(plan, tmp_path, given=given(run), first="grown")
    assert any(line.startswith("grown from a model: ") for line in said)
    found, parts = told(tmp_path / "01-grown"), parts_of(tmp_path / "01-grown")
    kept = {name: parts["model"][name] for name in found["copied"]}
    assert digest(kept) == found["copied_sha256"] == digest({n: given(run).weights[n] for n in kept})
    assert not (tmp_path / "00-core").exists()
    shutil.copytree(run / "00-core", tmp_path / "whole" / "00-core")
    trained(plan, tmp_path / "whole")  # the same from its ancestor, so that the seam was matched, too
    assert digest(parts_of(tmp_path / "whole" / "01-grown")["model"]) == digest(parts["model"])


def test_a_seam_that_is_inherited_is_not_matched_away():
    bad = changed("released", init=Inherit("grown", match_images=4))
    with pytest.raises(UserError, match=r"stage 'released': init\.match_images sets an affine seam that starts fresh"):
        planned(bad)


@pytest.mark.parametrize("bad", [{"rules": ()}, {"match_images": -1}])
def test_a_senseless_inheritance_is_refused(bad):
    with pytest.raises(ValueError, match="Inherit: "):
        Inherit("core", **({"rules": IDENTITY} | bad))
