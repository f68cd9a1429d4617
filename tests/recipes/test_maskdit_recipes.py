from dataclasses import replace

import pytest
import torch

from pixelspace import store
from pixelspace.data.emoji import Emoji
from pixelspace.data.latents import Latents
from pixelspace.errors import UserError
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.noise.levels import Karras, LogNormal
from pixelspace.noise.process import EDM, Process
from pixelspace.objectives.denoising import Denoising
from pixelspace.objectives.masked import Masked, MaskRatio
from pixelspace.recipes.maskdit import imagenet256_debug, maskdit
from pixelspace.training.loop import run_recipe
from pixelspace.training.optim import AdamW, Constant
from pixelspace.training.stage import Inherit
from tests.backbones.cases import HDIT
from tests.recipes.test_recipes import made

STEPS = {256: (2_000_000, 100_000, 1024), 512: (1_000_000, 50_000, 512)}


@pytest.mark.parametrize("name", ["maskdit-imagenet256", "maskdit-imagenet256-cosine", "maskdit-imagenet512"])
def test_the_original_s_training_row_is_whole(name):
    masked, tuned = made(name).stages
    side = masked.size[0]
    steps, tuning_steps, tuning_batch = STEPS[side]
    assert masked.backbone == tuned.backbone == maskdit("XL", size=(side // 8, side // 8))
    assert (masked.batch, masked.images) == (1024, steps * 1024)
    assert (tuned.batch, tuned.images) == (tuning_batch, tuning_steps * tuning_batch)
    levels = Process(EDM(0.5)), LogNormal(-1.2, 1.2)
    assert masked.objective == Masked(*levels, (2, 2), MaskRatio(0.5), mae=0.1, target="noisy", drop_rate=0.1)
    if "cosine" in name:
        assert tuned.objective.mask(0.0) == 0.5 and tuned.objective.mask(1.0) == pytest.approx(0)
    else:
        assert isinstance(tuned.objective, Denoising) and tuned.objective.drop_rate == 0.1
    for stage, lr in ((masked, 1e-4), (tuned, 5e-5)):
        assert stage.optimizer == AdamW(lr=lr, betas=(0.9, 0.999), weight_decay=0.0, clip=0.0)
        assert stage.schedule == Constant() and stage.ema.decay(0) == stage.ema.decay(10**7) == 0.9999
        sampling = stage.sampling
        assert (sampling.solver, sampling.steps, sampling.guidance) == ("heun", 40, 1.5)
        assert sampling.levels == Karras(0.002, 80.0, 7.0)
        assert stage.codec == KLVAE() and isinstance(stage.data.source, Latents) and not stage.data.flip
    assert (masked.precision, tuned.precision) == ("bf16", "fp32")
    assert tuned.init == Inherit("masked", weights="raw", ema="carry") and masked.init is None


def test_tuning_starts_from_the_masked_weights_and_their_average(tmp_path):
    recipe = imagenet256_debug()
    masked, tuned = recipe.stages
    masked = replace(masked, images=4 * masked.batch)
    # a rate that moves nothing, so that what was carried shows
    tuned = replace(tuned, images=tuned.batch, optimizer=replace(tuned.optimizer, lr=1e-30))
    run_recipe(
        replace(recipe, stages=(masked, tuned)),
        tmp_path,
        device=torch.device("cpu"),
        progress=False,
        say=lambda text: None,
    )
    before = store.read(tmp_path / "00-masked/checkpoints/step-00000004", kind="checkpoint")
    after = store.read(tmp_path / "01-tuned/checkpoints/step-00000001", kind="checkpoint")
    assert after.state["ema_updates"] == before.state["ema_updates"] + 1
    for name, tensor in before.parts["model"].items():
        torch.testing.assert_close(after.parts["model"][name], tensor, rtol=0, atol=1e-20)
        expected = torch.lerp(before.parts["ema"][name], tensor, 1e-4)
        torch.testing.assert_close(after.parts["ema"][name], expected, rtol=1e-5, atol=1e-9)
    assert any("mask_token" in name for name in before.parts["optimizer"])
    assert not any("mask_token" in name for name in after.parts["optimizer"])


def test_a_masked_run_goes_on_to_the_same_bits(tmp_path):
    recipe = imagenet256_debug()

    def train(folder, images):
        stages = (replace(recipe.stages[0], images=images, save_images=images), *recipe.stages[1:])
        short = replace(recipe, stages=stages[:1])
        run_recipe(short, folder, device=torch.device("cpu"), progress=False, say=lambda text: None)

    batch = recipe.stages[0].batch
    train(tmp_path / "whole", 6 * batch)
    train(tmp_path / "parts", 3 * batch)
    train(tmp_path / "parts", 6 * batch)
    a, b = (
        store.read(tmp_path / f"{n}/00-masked/checkpoints/step-00000006", kind="checkpoint") for n in ("whole", "parts")
    )
    for part in a.parts:
        for name, tensor in a.parts[part].items():
            assert torch.equal(tensor, b.parts[part][name]), (part, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"backbone": HDIT}, "HDiTConfig.* needs all patches"),
        (lambda s: {"backbone": replace(s.backbone, patch=4)}, r"objective.patch \(2, 2\): .* patches of \(4, 4\)"),
        (lambda s: {"backbone": replace(s.backbone, num_classes=0)}, "drop_rate 0.1: .* neither classes nor text"),
        (lambda s: {"backbone": replace(s.backbone, channels=4)}, "4 channels, its codec .Pixels. 3"),
        (lambda s: {"size": (32, 32)}, "image height 32: .* for 16x16 samples alone"),
        (lambda s: {"codec": KLVAE(), "size": (20, 20)}, "this codec needs a multiple of 8"),
        (lambda s: {"codec": KLVAE(), "size": (16, 16)}, "image height 2: .* for 16x16"),
    ],
)
def test_stages_that_cannot_be_trained_are_refused(change, message):
    stage = imagenet256_debug().stages[0]
    with pytest.raises((UserError, ValueError), match=message):
        replace(stage, **change(stage))


def test_the_debug_recipes_keep_their_stages():
    for name in ("maskdit-imagenet256", "maskdit-imagenet256-cosine", "maskdit-imagenet512"):
        big, small = made(name), made(f"{name}-debug")
        for a, b in zip(big.stages, small.stages, strict=True):
            assert type(a.objective) is type(b.objective) and isinstance(b.data.source, Emoji)
            assert (a.optimizer, a.ema, a.init, a.schedule) == (b.optimizer, b.ema, b.init, b.schedule)
        assert small.name == f"{name}-debug"
