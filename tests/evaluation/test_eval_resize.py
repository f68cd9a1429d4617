"""Resizes against the implementations they are named after (goldens/metrics/resize)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelspace.evaluation.resize import CLIP_MEAN, CLIP_STD, RESIZERS

METRICS = Path(__file__).parents[1] / "goldens" / "metrics"
INPUTS = ("down_512x400", "up_48x64", "same_299")
TF1, TORCH, PILLOW = 0.0, 1e-4, 2.5e-3  # what torch's antialiasing leaves of Pillow's is in the golden's description
GOLDENS = {  # golden: resize, size, tolerance
    "tf1_bilinear_299": ("tf1_bilinear", 299, TF1),
    "cleanfid_clean_299": ("clean_bicubic", 299, PILLOW),
    "kdiffusion_bicubic_aa_299": ("clean_bicubic", 299, TORCH),
    "dgmeval_clean_224": ("clean_bicubic", 224, PILLOW),
    "cleanfid_legacy_pytorch_299": ("pytorch_bilinear", 299, TORCH),
    "torchmetrics_bilinear_aa_299": ("bilinear_antialiased", 299, TORCH),
    "edm2_torch_224": ("edm2_bicubic", 224, TORCH),
    "pil_uint8_bicubic_224": ("pil_bicubic", 224, 0.0),
    "cmmd_crop_336": ("cmmd_crop", 336, 0.0),
    "hf_clip_224_normalised": ("clip_pil", 224, 1e-6),
}


def image(name):
    return torch.from_numpy(np.array(Image.open(METRICS / f"resize_input_{name}.png"))).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(METRICS / "resize.npz"))


@pytest.fixture(scope="module")
def statistics(golden_json):
    return golden_json("metrics/resize")["methods"]


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("method", GOLDENS)
def test_a_resize_is_that_of_its_namesake(expected, statistics, name, method):
    resize, size, tolerance = GOLDENS[method]
    made = RESIZERS[resize](image(name), size)
    assert made.dtype == torch.float32 and made.shape == (1, 3, size, size)
    if method.endswith("normalised"):
        made = (made / 255 - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    found = made[0].permute(1, 2, 0).double().numpy()
    np.testing.assert_allclose(found[1::5, 1::5], expected[f"{name}__{method}"].astype(float), 0, tolerance)
    whole = statistics[f"{name}/{method}"]
    np.testing.assert_allclose(found.mean((0, 1)), whole["mean"], 0, 1e-5)
    np.testing.assert_allclose(found.std((0, 1)), whole["std"], 0, 1e-5)
    np.testing.assert_allclose((found.min(), found.max()), (whole["min"], whole["max"]), 0, max(tolerance, 1e-5))
    if (channel := expected.get(f"{name}__{method}__full_channel0")) is not None:
        np.testing.assert_allclose(found[..., 0], channel, 0, tolerance)


@pytest.mark.parametrize("resize", RESIZERS)
def test_an_image_is_resized_alike_alone_and_among_others(resize):
    images = torch.randint(0, 256, (3, 3, 37, 50), dtype=torch.uint8)
    together = RESIZERS[resize](images, 24)
    for one, among in zip(images, together, strict=True):
        assert torch.equal(RESIZERS[resize](one[None], 24)[0], among)


@pytest.mark.parametrize("resize", RESIZERS)
@pytest.mark.parametrize("size", [(40, 40), (57, 40), (40, 61)])
def test_a_flat_colour_stays(resize, size):
    images = torch.tensor([3, 128, 255], dtype=torch.uint8)[None, :, None, None].expand(1, 3, *size)
    assert (RESIZERS[resize](images, 32) - images[..., :1, :1]).abs().max() <= 1e-4


@pytest.mark.parametrize("resize", RESIZERS)
def test_a_square_of_the_size_asked_for_is_not_touched(resize):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(RESIZERS[resize](images, 32), images.float())


@pytest.mark.parametrize("length, size", [(2, 3), (7, 5), (256, 299)])
def test_tensorflows_bilinear_reads_pixel_i_at_i_in_out(length, size):
    ramp = torch.arange(length, dtype=torch.float64).expand(1, 1, length, length)
    at = (torch.arange(size) * length / size).clamp(max=length - 1)
    torch.testing.assert_close(RESIZERS["tf1_bilinear"](ramp, size)[0, 0, 0].double(), at.double(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("height, width", [(41, 64), (64, 41), (33, 90), (50, 50)])
def test_clip_sees_what_transformers_shows_it(height, width):
    transformers = pytest.importorskip("transformers")
    images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_rescale": False}
    theirs = transformers.CLIPImageProcessorPil(**settings, do_normalize=False)(images[0].permute(1, 2, 0).numpy())
    assert np.array_equal(RESIZERS["clip_pil"](images, 32)[0], np.asarray(theirs["pixel_values"][0], np.float32))


@pytest.mark.parametrize("shape", [(40, 53), (53, 40)])
def test_cmmd_sees_the_central_square_with_less_before_than_behind(shape):
    images = torch.zeros(1, 3, *shape, dtype=torch.uint8)
    images[..., 6:46] = 200
    if shape[0] > shape[1]:
        images = images.zero_()
        images[..., 6:46, :] = 200
    assert (RESIZERS["cmmd_crop"](images, 40) == 200).all()
