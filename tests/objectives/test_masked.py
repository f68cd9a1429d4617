import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.errors import UserError
from pixelspace.noise.levels import LogNormal
from pixelspace.noise.process import EDM, Process
from pixelspace.noise.weighting import Unit
from pixelspace.objectives.denoising import Denoising
from pixelspace.objectives.masked import Masked, MaskRatio, patches, reconstruction
from pixelspace.random import Rng
from pixelspace.types import Batch, Draw
from tests.backbones.cases import HDIT

PROCESS, LEVELS = Process(EDM(0.5)), LogNormal()
OBJECTIVE = Masked(PROCESS, LEVELS, (2, 4), MaskRatio(0.5), mae=0.0, drop_rate=0.25)


def batch_of(n, start=0, dtype=torch.float64):
    pos = torch.arange(start, start + n)
    return Batch(torch.randn(n, 3, 8, 16, dtype=dtype), {"label": pos % 5}, pos)


def says(out):
    return lambda x, c_noise, cond, keep=None: out


def test_draws_do_not_depend_on_how_the_global_batch_is_split():
    whole = batch_of(16, 32)
    draw = OBJECTIVE.draw(whole, 16, 0.0, Rng(3))
    assert draw.keep.shape == (16, 8) and (draw.keep.diff() > 0).all() and int(draw.keep.max()) < 16
    for start in range(0, 16, 4):
        rows = slice(start, start + 4)
        part = Batch(whole.x[rows], {"label": whole.cond["label"][rows]}, whole.pos[rows])
        found = OBJECTIVE.draw(part, 16, 0.0, Rng(3))
        for name in ("sigma", "noise", "drop", "keep"):
            assert torch.equal(getattr(found, name), getattr(draw, name)[rows]), name


def test_masks_differ_between_samples_and_fall_on_every_patch_alike():
    keep = Rng(0).subset("mask", torch.arange(2000), 16, 8)
    share = torch.zeros(2000, 16).scatter(1, keep, 1).mean(0)
    assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(2000)
    assert len({tuple(row) for row in keep.tolist()}) > 1800  # of 12,870


def test_with_everything_kept_it_is_plain_denoising():
    batch = batch_of(4)
    draw = Draw(torch.logspace(-1, 1, 4, dtype=torch.float64), torch.randn_like(batch.x))
    out = torch.randn_like(batch.x)
    expected = Denoising(PROCESS, LEVELS, Unit()).loss(says(out), batch, draw)
    for mae in (0.0, 0.1):
        objective = Masked(PROCESS, LEVELS, (2, 4), mae=mae)
        torch.testing.assert_close(objective.loss(says(out), batch, draw), expected)
    every = torch.arange(16).expand(4, -1)
    whole = Draw(draw.sigma, draw.noise, None, every)
    torch.testing.assert_close(OBJECTIVE.loss(says(out), batch, whole), expected)


def test_only_kept_patches_are_denoised_and_only_removed_ones_reconstructed():
    batch = batch_of(4)
    draw = OBJECTIVE.draw(batch, 4, 0.0, Rng(1))
    out = torch.randn_like(batch.x)
    visible = torch.zeros(4, 16, dtype=torch.bool).scatter(1, draw.keep, True).reshape(4, 1, 4, 4)
    visible = visible.repeat_interleave(2, 2).repeat_interleave(4, 3)
    elsewhere = torch.where(visible, out, torch.randn_like(out))
    loss = OBJECTIVE.loss(says(out), batch, draw)
    assert torch.equal(loss, OBJECTIVE.loss(says(elsewhere), batch, draw))
    mae = Masked(PROCESS, LEVELS, (2, 4), mae=1.0)
    part = mae.loss(says(out), batch, draw) - loss
    inside = torch.where(visible, torch.randn_like(out), out)
    again = mae.loss(says(inside), batch, draw) - OBJECTIVE.loss(says(inside), batch, draw)
    torch.testing.assert_close(part, again)


def test_the_mean_over_all_masks_is_the_loss_on_all_patches():
    """Each patch is kept equally often, so masked denoising is unbiased."""
    batch = batch_of(1)
    batch = Batch(batch.x.expand(4000, -1, -1, -1), {}, torch.arange(4000))
    keep = Rng(0).subset("mask", batch.pos, 16, 8)
    out = torch.randn_like(batch.x[:1]).expand_as(batch.x)
    noise = torch.randn_like(batch.x[:1]).expand_as(batch.x)
    sigma = torch.ones(4000, dtype=torch.float64)
    masked = OBJECTIVE.loss(says(out), batch, Draw(sigma, noise, None, keep))
    whole = OBJECTIVE.loss(says(out), batch, Draw(sigma, noise))
    assert abs(masked.mean() - whole[0]) < 5 * masked.std() / math.sqrt(4000)


def test_reconstruction_meets_the_golden(golden):
    stored = golden("maskdit/loss")
    target, pred, mask = (stored[f"mae_unit.{name}"] for name in ("target", "pred", "mask"))
    torch.testing.assert_close(patches(target, (2, 2)), stored["mae_unit.patchify_target"], rtol=0, atol=0)
    found = (reconstruction(pred, target, (2, 2)) * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(found, stored["mae_unit.loss_normpix"], rtol=1e-5, atol=1e-6)


def test_patches_are_in_the_original_s_order(golden):
    stored = golden("maskdit/tables")
    assert torch.equal(patches(stored["unpatchify.out"], (2, 2)), stored["unpatchify.in"])


def test_the_target_is_the_noisy_input_unless_asked_otherwise():
    batch = batch_of(3)
    draw = OBJECTIVE.draw(batch, 3, 0.0, Rng(2))
    removed = torch.ones(3, 16, dtype=torch.float64).scatter(1, draw.keep, 0)
    x = PROCESS.corrupt(batch.x, draw.noise, draw.sigma)
    for target, image in (("noisy", x), ("clean", batch.x)):
        goal = patches(image, (2, 4))
        goal = (goal - goal.mean(-1, keepdim=True)) / (goal.var(-1, keepdim=True) + 1e-6).sqrt()
        goal = goal.reshape(3, 4, 4, 2, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(batch.x.shape)
        out = PROCESS.target(goal, x, draw.sigma)  # the output whose denoised estimate is the goal itself
        losses = [
            Masked(PROCESS, LEVELS, (2, 4), mae=m, target=target).loss(says(out), batch, draw) for m in (0.0, 1.0)
        ]
        torch.testing.assert_close(losses[1] - losses[0], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert removed.sum(1).tolist() == [8, 8, 8]


@pytest.mark.parametrize("name", ["constant", "linear", "exp", *(f"cosine{k}" for k in range(2, 7))])
def test_schedules_meet_the_golden(golden_json, name):
    rows = golden_json("maskdit/tables")["mask_ratio_schedules_scale0_5_min0_1"][name]
    schedule = name.rstrip("0123456789")
    ratio = MaskRatio(0.5, schedule, 0.1, int(name.removeprefix(schedule) or 4))
    for progress, expected in rows:
        assert ratio(progress) == pytest.approx(expected, rel=1e-12)


def test_counts_of_kept_patches_meet_the_golden(golden_json):
    for key, kept in golden_json("maskdit/tables")["len_keep"].items():
        length, ratio = (part.partition("=")[2] for part in key.split(","))
        assert MaskRatio(float(ratio)).kept(int(length), 0.0) == kept


@pytest.mark.parametrize("length", [1, 2, 10, 256])
@pytest.mark.parametrize("multiple", [1, 3, 32])
def test_at_least_one_patch_is_kept_and_never_more_than_there_are(length, multiple):
    for ratio in (0.0, 0.5, 0.9, 0.999999):
        for schedule in ("constant", "linear", "cosine", "exp"):
            mask = MaskRatio(ratio, schedule, multiple=multiple)
            for step in range(11):
                assert 1 <= mask.kept(length, step / 10) <= length


def test_a_ratio_near_one_or_near_none_gives_finite_losses():
    batch = batch_of(3)
    for mask in (MaskRatio(0.9999), MaskRatio(0.5, "cosine"), MaskRatio(0.01)):
        objective = Masked(PROCESS, LEVELS, (2, 4), mask, mae=0.1)
        for progress in (0.0, 0.5, 0.99, 0.99999, 1.0):
            draw = objective.draw(batch, 3, progress, Rng(0))
            assert objective.loss(says(torch.zeros_like(batch.x)), batch, draw).isfinite().all()


def test_a_moving_ratio_gives_few_shapes_when_rounded():
    mask = MaskRatio(0.5, "cosine", multiple=32)
    assert sorted({mask.kept(256, step / 1000) for step in range(1001)}) == [128, 160, 192, 224, 256]


def test_a_compiled_network_meets_a_moving_ratio_without_compiling_each_step():
    torch._dynamo.reset()
    config = MaskDiTConfig(16, 1, 2, (16, 16), channels=3, decoder=Decoder(8, 1, 2))
    objective = Masked(PROCESS, LEVELS, (2, 2), MaskRatio(0.5, "cosine", multiple=16))
    graphs = CompileCounterWithBackend("eager")
    network = torch.compile(config.build(), backend=graphs, dynamic=False)
    batch = Batch(torch.randn(2, 3, 16, 16), {}, torch.arange(2))
    for step in range(40):
        objective.loss(network, batch, objective.draw(batch, 2, step / 40, Rng(0)))
    assert graphs.frame_count == 3  # 32, 48 and 64 of 64 patches


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskRatio(1.0),
        lambda: MaskRatio(-0.1),
        lambda: MaskRatio(low=1.0),
        lambda: MaskRatio(multiple=0),
        lambda: Masked(PROCESS, LEVELS, (0, 2)),
        lambda: Masked(PROCESS, LEVELS, (2, 2), mae=-1.0),
        lambda: Masked(PROCESS, LEVELS, (2, 2), drop_rate=2.0),
    ],
)
def test_senseless_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"must be|not negative"):
        make()


def test_networks_that_cannot_be_trained_so_are_refused():
    dit = MaskDiTConfig(16, 1, 2, (16, 16), channels=3)
    Masked(PROCESS, LEVELS, (2, 2)).check(dit)
    with pytest.raises(UserError, match=r"objective.patch \(2, 4\): .* patches of \(2, 2\)"):
        Masked(PROCESS, LEVELS, (2, 4)).check(dit)
    with pytest.raises(UserError, match=r"HDiTConfig.* needs all patches"):
        Masked(PROCESS, LEVELS, (2, 2)).check(HDIT)
    with pytest.raises(UserError, match="neither classes nor text to drop"):
        Masked(PROCESS, LEVELS, (2, 2), drop_rate=0.1).check(dit)
