import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from safetensors.torch import load_file

import pixelspace as ps
from pixelspace.errors import UserError
from pixelspace.exporting.diffusers import to_diffusers
from pixelspace.exporting.weights import in_precision, to_model
from tests.exporting.small import LABELLED, PYRAMID, READING, made


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """Exports a model and opens the folder as diffusers' users do."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def opened(model, kept="fp32", **given):
        to_diffusers(model, tmp_path / "out", kept)
        found = DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True, **given)
        found.set_progress_bar_config(disable=True)
        return found

    return opened


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_pipeline_draws_the_model_s_images(pipeline):
    model = made(LABELLED)
    pipe = pipeline(model)
    told = []
    images = pipe(
        num_images=3,
        label=["cat", "newt", 1],
        num_inference_steps=4,
        guidance_scale=2.0,
        generator=seeded(7),
        output_type="pt",
        callback_on_step_end=lambda pipe, step, sigma, given: told.append(step),
    ).images
    wanted = model.sample(3, label=["cat", "newt", 1], steps=4, guidance=2.0, seed=7, progress=False)
    torch.testing.assert_close(images, wanted.movedim(-1, 1) / 255, rtol=0, atol=1e-4)
    assert told == [0, 1, 2, 3]
    assert [image.size for image in pipe(num_images=2, generator=seeded(1)).images] == [(12, 8)] * 2


def test_whoever_may_read_the_folder_may_read_its_weights(tmp_path):
    to_diffusers(made(LABELLED), tmp_path / "out")
    assert len({path.stat().st_mode for path in (tmp_path / "out").rglob("*") if path.is_file()}) == 1


def test_a_pipeline_reads_prompts_and_knows_nothing_without_its_encoder(pipeline):
    model = made(READING)
    model.nothing = dict(model.reader([""]).cond())
    pipe = pipeline(model)
    images = pipe(["a boat", "two"], "fog", guidance_scale=3.0, generator=seeded(2), output_type="np").images
    wanted = model.sample(text=["a boat", "two"], negative="fog", guidance=3.0, seed=2, progress=False)
    assert abs(images - wanted.numpy() / 255).max() < 1e-4
    assert pipe.denoiser.model().nothing.keys() == model.nothing.keys()
    for name, rows in pipe.denoiser.model().nothing.items():
        assert torch.equal(rows, model.nothing[name])


def test_a_pipeline_of_a_pyramid_draws_its_finest_level(pipeline):
    model = made(PYRAMID)
    images = pipeline(model)(num_images=2, generator=seeded(5), output_type="pt").images
    torch.testing.assert_close(images, model.sample(2, seed=5, progress=False).movedim(-1, 1) / 255, rtol=0, atol=1e-4)


def test_a_pipeline_refuses_what_the_model_has_no_use_for(pipeline):
    pipe = pipeline(made(LABELLED))
    with pytest.raises(UserError, match="reads no text"):
        pipe("a boat")
    with pytest.raises(ValueError, match="output_type: expected pil, np or pt"):
        pipe(output_type="latent")


def test_a_pipeline_is_not_drawn_with_rounded_buffers(pipeline):
    pipe = pipeline(made(LABELLED), dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"^dtype: found \['torch.bfloat16'.*leave it out"):
        pipe()


@pytest.mark.parametrize("kept", ["bf16", "fp16"])
def test_learnt_weights_are_halved_and_buffers_stay(kept, tmp_path):
    model = made(LABELLED)
    to_model(model, tmp_path / "half", kept)
    stored = load_file(tmp_path / "half/model.safetensors")
    buffers = dict(model.backbone.named_buffers())
    assert buffers and all(torch.equal(stored[name], buffer) for name, buffer in buffers.items())
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[kept]
    for name, parameter in model.backbone.named_parameters():
        assert torch.equal(stored[name], parameter.to(dtype))
    again = ps.load(tmp_path / "half", device="cpu").backbone
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, stored[name].float())


def test_a_weight_that_float16_cannot_hold_is_named():
    model = made(LABELLED)
    model.backbone.patch_out.proj.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"^patch_out.proj.weight: holds numbers that fp16 cannot; export it as bf16"):
        in_precision(model.backbone, "fp16")
    assert in_precision(model.backbone, "bf16")["patch_out.proj.weight"].isfinite().all()


def test_a_full_export_is_the_model_s_bits(tmp_path):
    model = made(READING)
    to_model(model, tmp_path / "out")
    again = ps.load(tmp_path / "out", device="cpu")
    assert again.sha256 == model.sha256 and again.config == model.config
