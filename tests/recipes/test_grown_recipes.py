import re
from dataclasses import replace

import pytest
import torch
from einops import repeat

from pixelspace import store
from pixelspace.backbones.hdit import Global, Level, Neighborhood
from pixelspace.backbones.maskdit import Decoder
from pixelspace.data.codec import Pixels
from pixelspace.data.folder import Folder
from pixelspace.data.loader import divide
from pixelspace.errors import UserError
from pixelspace.growth.freeze import freeze
from pixelspace.growth.transfer import interpolated, transfer
from pixelspace.nn.embed import sincos_positions
from pixelspace.recipes import RECIPES, hdit
from pixelspace.recipes.grown import FINER_GRID, hourglass_at, inner_levels, outer_levels
from pixelspace.training.inherit import Given, planned
from pixelspace.training.loop import run_recipe
from tests.backbones.cases import HDIT, MASKDIT, PLAIN, WITH_TEXT, conditions
from tests.data.image_folders import draw
from tests.recipes.test_recipes import made

HEIRS = [name for name in RECIPES if any(stage.init for stage in made(name).stages)]
FULL = {"hdit-text-debug": "hdit-text-demo"}  # the one debug recipe that is of another name
DEBUG = [name for name in RECIPES if name.endswith("-debug")]
GROWN = ("hdit-grown-128-debug", "maskdit-grown-128-debug", "greedy-256-debug")

LEVEL = Level(16, 1, Neighborhood(8, kernel=3))
HOLLOW = replace(HDIT, levels=(HDIT.levels[0], replace(HDIT.levels[1], depth=0), HDIT.levels[2]))
OUTWARDS = {
    "one level": (hdit.OWN64, (Level(128, 2, Neighborhood()),)),
    "two levels": (WITH_TEXT, (LEVEL,)),
    "three levels, two new": (HDIT, (LEVEL, LEVEL)),
    "a level without layers": (HOLLOW, (LEVEL,)),
    "new levels without layers": (PLAIN, (replace(LEVEL, depth=0), replace(LEVEL, depth=0))),
}


def stage_tensors(run, stage):
    """By part, the tensors of a stage's last checkpoint."""
    (folder,) = run.glob(f"[0-9][0-9]-{stage}")
    return store.read(max(folder.glob("checkpoints/step-*")), kind="checkpoint").parts


def filled(config, seed=0, dtype=torch.float32):
    """A network none of whose weights is zero."""
    generator = torch.Generator().manual_seed(seed)
    network = config.build().to(dtype).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return network


def short(stage, steps):
    """A stage of so many steps that draws next to nothing."""
    sampling = replace(stage.sampling, steps=1)
    return replace(stage, images=steps * stage.batch, sampling=sampling, sample_count=1, validate_count=4)


def moved_outwards(name, new):
    """What the grown hourglass calls a tensor of the trained one."""
    return re.sub(r"^(down_levels|up_levels|merges|splits)\.(\d+)", lambda m: f"{m[1]}.{int(m[2]) + new}", name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Grown debug recipes by name, each stage of them trained for three steps."""
    runs = {}

    def run(name):
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp(name)
            recipe = made(name)
            recipe = replace(recipe, stages=tuple(short(stage, 3) for stage in recipe.stages))
            run_recipe(recipe, runs[name], device=torch.device("cpu"), progress=False, say=lambda text: None)
        return runs[name]

    return run


@pytest.mark.parametrize("name", HEIRS)
def test_every_stage_of_a_recipe_can_take_over_what_it_says(name):
    recipe = made(name)
    for plan, stage in zip(planned(recipe).values(), recipe.stages, strict=True):
        assert (plan.report is None) == (stage.init is None) and bool(plan.frozen) == bool(stage.freeze)
        if plan.report:
            learnt_there = {*plan.report.copied, *plan.report.resized}
            assert learnt_there and learnt_there.isdisjoint(plan.report.fresh)
            assert learnt_there >= set(plan.frozen)


@pytest.mark.parametrize("name", DEBUG)
def test_a_debug_recipe_tells_the_story_of_its_full_one(name):
    small, full = made(name), made(FULL.get(name, name.removesuffix("-debug")))

    def story(recipe):
        """Who inherits what from whom, and freezes what; not over how many images a seam is matched."""
        inits = [
            stage.init and replace(stage.init, match_images=min(stage.init.match_images, 1)) for stage in recipe.stages
        ]
        return [(stage.name, stage.freeze, init) for stage, init in zip(recipe.stages, inits, strict=True)]

    assert story(small) == story(full)
    for a, b in zip(small.stages, full.stages, strict=True):
        assert type(a.backbone) is type(b.backbone) and type(a.objective) is type(b.objective)
        factors = [[(g.names, g.lr_factor, g.warmup_images > 0) for g in s.optimizer.groups] for s in (a, b)]
        assert factors[0] == factors[1] and a.optimizer.lr == b.optimizer.lr


@pytest.mark.parametrize(("inner", "outer"), OUTWARDS.values(), ids=OUTWARDS)
def test_an_hourglass_takes_over_all_levels_of_another_and_only_its_rim_is_new(inner, outer):
    config, new = replace(inner, levels=(*outer, *inner.levels)), len(outer)
    source, network = filled(inner, 1).state_dict(), filled(config, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = transfer(source, network, outer_levels(inner, config))
    rim = {"patch_in.proj.weight", "patch_out.proj.weight", "out_norm.scale"}
    expected = {moved_outwards(name, new): name for name in source if name not in rim}
    assert report.copied == expected and set(report.unused) == rim and not report.resized
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source[expected[name]] if name in expected else before[name]), name


@pytest.mark.parametrize(("inner", "outer"), OUTWARDS.values(), ids=OUTWARDS)
def test_all_that_an_hourglass_takes_over_can_be_frozen(inner, outer):
    config = replace(inner, levels=(*outer, *inner.levels))
    with torch.device("meta"):
        source, network = inner.build(), config.build()
    report = transfer(source.state_dict(), network, outer_levels(inner, config))
    frozen = freeze(network, inner_levels(inner, config))
    assert set(frozen) == {name for name, _ in network.named_parameters() if name in report.copied}


@pytest.mark.parametrize("levels", [hdit.OWN64.levels, (LEVEL,), (LEVEL, Level(256, 5, Global()))])
def test_an_hourglass_grows_out_of_none_but_its_own_inner_levels(levels):
    for rules in (outer_levels, inner_levels):
        with pytest.raises(UserError, match=rf"an HDiT of {len(levels)} levels is not one of 1 with others round it"):
            rules(hdit.OWN64, replace(hdit.OWN64, levels=levels))


@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (2, 4)])
@pytest.mark.parametrize("inner", [WITH_TEXT, replace(HDIT, levels=HDIT.levels[::2])], ids=["text", "classes"])
def test_a_level_that_passes_tokens_through_leaves_a_grown_hourglass_as_it_was(inner, patch):
    # The image is of 2 x 2 equal patches. With patches of one pixel these are blocks of pixels. With larger ones the
    # same cannot hold for those: the last norm is over a token, which then is a quarter of what it was over.
    inner = replace(inner, patch=patch)
    level = Level(inner.levels[0].width, 1, Neighborhood(8, kernel=3))
    config = replace(inner, levels=(level, *inner.levels))
    source, network = filled(inner, dtype=torch.float64), config.build().double().eval()
    transfer(source.state_dict(), network, outer_levels(inner, config))
    with torch.no_grad():
        for end in ("patch_in.proj.weight", "patch_out.proj.weight", "out_norm.scale"):
            network.get_parameter(end).copy_(source.get_parameter(end))
        same = torch.eye(level.width, dtype=torch.float64)
        network.merges[0].proj.weight.copy_(same.repeat(1, 4) / 4)  # their mean
        network.splits[0].proj.weight.copy_(same.repeat(4, 1))  # four copies
        network.splits[0].fac.fill_(1)  # and nothing of the skip
        height, width = 6 * patch[0], 8 * patch[1]
        x = torch.randn(3, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        c_noise, cond = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), conditions(inner, 3, torch.float64)

        def blocks(image):
            p, q = patch
            return repeat(image, "b c (h p) (w q) -> b c (h two p) (w deux q)", p=p, q=q, two=2, deux=2)

        expected = source(x, c_noise, cond)
        torch.testing.assert_close(network(blocks(x), c_noise, cond), blocks(expected), rtol=0, atol=1e-11)
    assert expected.std() > 0.1


def test_the_inner_levels_are_asked_about_the_noise_levels_they_learnt():
    assert hourglass_at(64) == hdit.objective_at(64)
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    small, large = hourglass_at(64), hourglass_at(128)
    torch.testing.assert_close(large.levels(u), 2 * small.levels(u), rtol=1e-9, atol=0)
    x = torch.zeros(101, 1, 1, 1, dtype=torch.float64)
    asked = [one.process.inputs(x, one.levels(u))[1] for one in (small, large)]
    torch.testing.assert_close(asked[1], asked[0], rtol=0, atol=1e-9)


def codes_at(y, x, width):
    """Sines and cosines (len(y) len(x), width) of places anywhere between tokens, column first."""
    y, x = torch.meshgrid(y, x, indexing="ij")
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    phases = [axis.flatten()[:, None] * rates for axis in (x, y)]
    return torch.cat([wave(phase) for phase in phases for wave in (torch.sin, torch.cos)], 1)


@pytest.mark.parametrize("cls_token", [False, True])
def test_a_finer_grid_of_maskdit_has_the_codes_of_the_places_between_the_old_ones(cls_token):
    decoder = Decoder(16, 1, 2, takes_cls=cls_token)
    small = replace(MASKDIT, size=(24, 32), cls_token=cls_token, decoder=decoder)
    large = replace(small, size=(48, 64))
    source, network = filled(small), filled(large, 1)
    for name, width in (("pos_embed", small.width), ("decoder_pos_embed", decoder.width)):
        codes = sincos_positions(12, 16, width)  # as they are without what `filled` adds
        torch.testing.assert_close(codes_at(torch.arange(12.0), torch.arange(16.0), width), codes, rtol=0, atol=1e-6)
        source.get_parameter(name).data[0, int(cls_token) :] = codes.float()
    report = transfer(source.state_dict(), network, FINER_GRID, (small.positions, large.positions))
    assert set(report.resized) == {"pos_embed", "decoder_pos_embed"} and not report.fresh and not report.unused
    for name, tensor in source.state_dict().items():
        finer = network.get_parameter(name)[0].double() if name in report.resized else network.state_dict()[name]
        if name not in report.resized:
            assert torch.equal(finer, tensor), name
            continue
        assert torch.equal(finer[: int(cls_token)], tensor[0, : int(cls_token)].double())
        finer, old = finer[int(cls_token) :].reshape(24, 32, -1), tensor[0, int(cls_token) :].reshape(12, 16, -1)
        centres = finer.reshape(12, 2, 16, 2, -1).mean((1, 3))
        torch.testing.assert_close(centres, old.double(), rtol=0, atol=0.06)
        between = codes_at(torch.arange(24) / 2 - 0.25, torch.arange(32) / 2 - 0.25, finer.shape[-1])
        error = (finer - between.reshape(finer.shape))[4:-4, 4:-4].abs().amax((0, 1)).reshape(4, -1)  # beyond the rim
        assert error[:, 0].max() < 0.04  # the fastest wave turns a radian from token to token
        assert (error[:, 1:] < error[:, :1] / 3).all() and error[:, -1].max() < 1e-4  # slower ones are met far better


@pytest.mark.parametrize("name", GROWN)
def test_what_a_grown_recipe_freezes_stays_bit_for_bit_until_it_is_released(name, trained):
    recipe, run = made(name), trained(name)
    plans = planned(recipe)
    for stage in recipe.stages[1:]:
        plan = plans[stage.name]
        assert stage.init is not None and plan.report is not None
        before = stage_tensors(run, stage.init.stage)["ema" if stage.init.weights == "ema" else "model"]
        after = stage_tensors(run, stage.name)
        learnt = {key.rpartition(".")[0] for key in after["optimizer"]}
        assert learnt.isdisjoint(plan.frozen)
        for here in plan.frozen:
            there = before[plan.report.copied[here]]
            assert torch.equal(after["model"][here], there) and torch.equal(after["ema"][here], there), here
        released = plans[stage.init.stage].frozen
        moved = [here for here in released if not torch.equal(after["model"][here], before[here])]
        # Not all: what lies before maps that start at zero has no gradient in the first steps.
        assert learnt >= set(released) and len(moved) >= len(released) / 2


def test_an_hourglass_trained_before_can_be_grown_without_the_first_stage(tmp_path):
    recipe = made("hdit-grown-128-debug")
    base, grown, _ = recipe.stages
    network = filled(base.backbone)
    given = Given("elsewhere", network.state_dict(), base.backbone, Pixels(), base.objective.process, (16, 16))
    recipe = replace(recipe, stages=(base, short(grown, 1)))
    run_recipe(
        recipe,
        tmp_path,
        device=torch.device("cpu"),
        given=given,
        first=grown.name,
        progress=False,
        say=lambda text: None,
    )
    kept = stage_tensors(tmp_path, grown.name)["model"]
    for name, tensor in given.weights.items():
        if not name.startswith(("patch_", "out_norm")):
            assert torch.equal(kept[moved_outwards(name, 1)], tensor), name


def test_the_finer_grid_keeps_its_interpolated_table_through_training(trained):
    run = trained("maskdit-grown-128-debug")
    first, finer, tuned = (stage_tensors(run, name) for name in ("masked-64", "masked-128", "tuned-128"))
    for name in ("pos_embed", "decoder_pos_embed"):
        table = interpolated(first["model"][name], (4, 4), (8, 8), finer["model"][name].shape)
        for part in ("model", "ema"):
            assert torch.equal(finer[part][name], table) and torch.equal(tuned[part][name], table)


def test_a_grown_network_learns_from_the_larger_images_and_from_none_that_its_core_was_judged_by(tmp_path):
    for i in range(24):
        draw(tmp_path / f"{i}.png", *((256, 260) if i % 2 else (80, 255)), seed=i)
    recipe = made("greedy-256")
    dataset = Folder(str(tmp_path)).open(None)
    learnt, judged = {}, {}
    for stage in recipe.stages:
        learnt[stage.name], judged[stage.name] = map(
            set, divide(dataset, replace(stage.data, holdout=0.3), recipe.split)
        )
    large = {i for i in range(24) if dataset.name(i)[:-4].endswith(tuple("13579"))}
    assert learnt["core-64"] | judged["core-64"] == set(range(24)) and judged["core-64"] & large
    assert learnt["grow-256"] == learnt["joint-256"] == large - judged["core-64"]
