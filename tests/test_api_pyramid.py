"""Models that draw several levels at once, and clips, in hand."""

from dataclasses import replace

import pytest
import torch

from pixelspace.backbones.hdit import Global, HDiTConfig, Level
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig
from pixelspace.backbones.unet_body import UNetBody, UNetLevel
from pixelspace.data.codec import to_uint8
from pixelspace.data.emoji import Emoji
from pixelspace.data.loader import Data
from pixelspace.errors import UserError
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.model import Model
from pixelspace.model_config import ModelConfig
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.noise.tables import SquaredCosine
from pixelspace.noise.weighting import SNR
from pixelspace.objectives.denoising import Denoising
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.sampling.generate import Sampling, generate
from pixelspace.sampling.pyramid import Packing
from pixelspace.training.stage import Stage
from pixelspace.types import Batch, Draw

TABLE = SquaredCosine(100)
PROCESS = Process(VPV(), clock=TableIndex(TABLE))
INNER = UNetConfig(
    UNetBody((UNetLevel(8, 1), UNetLevel(16, 1)), time_width=16, groups=4, heads=2, attention_groups=4), num_classes=2
)


def around(inner, grids, frames=""):
    return NestedUNetConfig(UNetBody((UNetLevel(8, 1),) * grids, time_width=16, groups=4), inner, frames=frames)


IMAGES = around(around(INNER, 2), 2)
CLIPS = around(around(INNER, 3, "time"), 2, "space")  # of 4 frames


def model_of(backbone, size, **pyramid):
    config = ModelConfig(
        backbone,
        PROCESS,
        Sampling("euler_ancestral", steps=3, levels=TABLE, threshold="clip"),
        size,
        pyramid=Pyramid(backbone.pyramid, tiles=backbone.tiles, **pyramid),
    )
    torch.manual_seed(3)
    network = backbone.build()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return Model(config, network.state_dict(), "cpu")


@pytest.fixture(scope="module")
def model():
    return model_of(IMAGES, (16, 24))


def draw(model, n=3, **given):
    return model.sample(n, progress=False, exact=True, **given)


def test_every_level_is_given_the_finest_first_and_that_one_is_the_image(model):
    levels = draw(model, label=[0, 1, -1], every_level=True)
    assert [tuple(level.shape) for level in levels] == [(3, 16, 24, 3), (3, 8, 12, 3), (3, 4, 6, 3)]
    assert all(level.dtype == torch.uint8 and level.is_contiguous() for level in levels)
    assert torch.equal(levels[0], draw(model, label=[0, 1, -1]))
    again = draw(model, 1, label=1, first=1, every_level=True)
    assert all(torch.equal(level[1:2], alone) for level, alone in zip(levels, again, strict=True))


def test_every_level_is_watched_as_it_forms(model):
    shapes = []

    def watch(forming):
        shapes.append([tuple(level.shape) for level in forming.levels()])

    drawn = model.sample(2, every_level=True, progress=False, watch=watch)
    assert shapes == [[tuple(level.shape) for level in drawn]] * 3
    shapes.clear()
    drawn = model.sample(2, progress=False, watch=watch)
    assert shapes == [[tuple(drawn.shape)]] * 3


@pytest.mark.parametrize("pyramid", [Pyramid((1,)), None], ids=repr)
def test_a_plain_model_has_one_level(pyramid):
    plain = model_of(INNER, (8, 8))
    plain.config = replace(plain.config, pyramid=pyramid)
    (only,) = draw(plain, 2, every_level=True)
    assert torch.equal(only, draw(plain, 2))
    x = torch.randn(2, 3, 8, 8)
    inputs, c_noise = PROCESS.inputs(x, torch.tensor(2.0))
    expected = PROCESS.denoised(
        plain.backbone(inputs, c_noise, {"label": torch.tensor([-1, -1])}), x, torch.tensor(2.0)
    )
    torch.testing.assert_close(plain.denoised(x, 2.0), expected)


@pytest.mark.parametrize(
    ("backbone", "size", "divided"), [(IMAGES, (16, 24), False), (IMAGES, (16, 24), True), (CLIPS, (16, 16), False)]
)
def test_denoised_says_of_levels_what_the_objective_s_network_does(backbone, size, divided):
    model = model_of(backbone, size, power=2.0, divided=divided)
    model.backbone.double()
    pyramid, shape = model.config.pyramid, (3, *(side * backbone.tiles for side in size))
    images = torch.randn(2, *shape, dtype=torch.float64)
    draw = Draw(torch.tensor([0.4, 3.0], dtype=torch.float64), torch.randn(2, pyramid.length(shape)).double())
    cond = {"label": torch.tensor([1, -1])}
    objective = NestedDenoising(PROCESS, TABLE, SNR(), pyramid)
    _, noisy = objective.noised(Batch(images, cond, torch.arange(2)), draw)
    outs = model.backbone(*pyramid.inputs(PROCESS, noisy, draw.sigma), cond)
    each = zip(pyramid.pool(images), pyramid.split(draw.noise, shape), pyramid.k, strict=True)
    given = [x0 + k * draw.sigma.reshape(-1, 1, 1, 1) * noise for x0, noise, k in each]
    found = model.denoised(given, draw.sigma, cond)
    for r, (level, out, x) in enumerate(zip(found, outs, noisy, strict=True)):
        seen, k = pyramid.seen[r], pyramid.k[r]
        torch.testing.assert_close(level, PROCESS.denoised(out, x, draw.sigma * seen) * (k / seen))


def shapes(*sides):
    return [torch.zeros(2, 3, *side) for side in sides]


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.zeros(2, 3, 16, 24), r"\[\(2, 3, 16, 24\)\]"),
        (shapes((16, 24), (8, 12)), "12"),
        (shapes((16, 24), (8, 12), (4, 4)), "4, 4"),
        ([*shapes((16, 24), (8, 12)), torch.zeros(1, 3, 4, 6)], "1, 3, 4, 6"),
        ([torch.zeros(16, 24)], "16, 24"),
        ([], r"\[\]"),
    ],
)
def test_levels_that_do_not_fit_are_refused_in_one_line(model, x, found):
    with pytest.raises(UserError, match=r"a list of 3 levels .* smaller by \(1, 2, 4\); found .*" + found):
        model.denoised(x, 1.0)


def test_a_clip_s_frames_are_the_tiles_of_what_is_drawn_and_its_coarsest_level_is_one():
    model = model_of(CLIPS, (16, 24))
    levels = draw(model, 2, label=[0, 1], every_level=True)
    assert [tuple(level.shape) for level in levels] == [(2, 4, 16, 24, 3), (2, 4, 8, 12, 3), (2, 1, 8, 12, 3)]
    assert torch.equal(draw(model, 2, label=[0, 1]), levels[0])
    config, shape = model.config, (3, 32, 48)
    cond = {"label": torch.tensor([0, 1])}
    given = {"images": torch.arange(2), "shape": shape, "cond": cond, "null": cond, "seed": 0, "batch": 16}
    (rows,) = generate(
        model._forward, PROCESS, config.sampling, **given, exact=True, pyramid=config.pyramid, every_level=True
    )
    fine, middle, coarse = (to_uint8(level) for level in Packing(config.pyramid, shape).unpack(rows))
    for t, (top, left) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        for level, image, (h, w) in ((levels[0], fine, (16, 24)), (levels[1], middle, (8, 12))):
            frame = image[:, :, top * h : top * h + h, left * w : left * w + w]
            assert torch.equal(level[:, t], frame.permute(0, 2, 3, 1))
    assert torch.equal(levels[2][:, 0], coarse.permute(0, 2, 3, 1))
    assert draw(model, 1, size=8).shape == (1, 4, 8, 8, 3)


def test_what_the_parts_of_a_model_say_of_its_levels_must_agree(model):
    with pytest.raises(ValueError, match=r"pyramid: the network has levels \(1, 2, 4\) and 1 x 1 frames; found None"):
        replace(model.config, pyramid=None)
    with pytest.raises(ValueError, match=r"the network has levels .* 2 x 2 frames"):
        replace(model.config, backbone=CLIPS, pyramid=Pyramid((1, 2, 4)))


def test_a_threshold_of_latents_is_refused_of_models_and_of_stages(model):
    backbone, clipped = HDiTConfig((Level(16, 1, Global(8)),), channels=4), model.config.sampling
    refusal = r"threshold 'clip': thresholds are of pixels in \[-1, 1\], and KLVAE gives latents"
    with pytest.raises(ValueError, match=refusal):
        ModelConfig(backbone, PROCESS, clipped, (64, 64), KLVAE("vae.pth"))
    objective, given = Denoising(PROCESS, TABLE, SNR(), 0.0), {"size": (64, 64), "batch": 1, "images": 1}
    with pytest.raises(ValueError, match=refusal):
        Stage("latents", backbone, objective, Data(Emoji()), **given, sampling=clipped, codec=KLVAE("vae.pth"))
