"""Models that read text, in hand."""

from dataclasses import replace

import pytest
import torch

import pixelspace as ps
from pixelspace.backbones.hdit import Global, HDiTConfig, Level
from pixelspace.drawing import draw_items
from pixelspace.errors import UserError
from pixelspace.model import Model
from pixelspace.model_config import ModelConfig
from pixelspace.nn.text import Text
from pixelspace.noise.levels import Karras
from pixelspace.noise.process import EDM, Process
from pixelspace.sampling.generate import Sampling
from pixelspace.text.bytes import Bytes

CONFIG = ModelConfig(
    backbone=HDiTConfig(
        levels=(Level(16, 1, Global(8), cross=True),),
        patch=(2, 2),
        mapping_width=16,
        text=Text(256, 256, inner=16, depth=1, head_dim=8),
    ),
    process=Process(EDM(0.5)),
    sampling=Sampling("heun", steps=4, levels=Karras(0.02, 20.0), guidance=2.0),
    size=(8, 12),
    text=Bytes(24),
    text_identity="bytes up to 24",
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    network = CONFIG.backbone.build()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return Model(CONFIG, network.state_dict(), "cpu")


def draw(model, *given, **named):
    return model.sample(*given, progress=False, exact=True, **named)


def test_image_i_is_of_prompt_i_modulo_their_number(model):
    two = draw(model, 4, text=["a cat", "a dog"], batch=1)
    assert two.shape == (4, 8, 12, 3)
    for i, prompt in enumerate(["a cat", "a dog", "a cat", "a dog"]):
        assert torch.equal(draw(model, 1, text=prompt, first=i, batch=1)[0], two[i])
    assert not torch.equal(draw(model, 1, text="a bird", batch=1)[0], two[0])
    assert len(draw(model, text=["a", "b", "c"])) == 3 and len(draw(model, text="a")) == 1


@pytest.mark.parametrize("fill", [True, False])
def test_an_image_does_not_depend_on_the_prompts_beside_it(model, fill):
    text = replace(CONFIG.text, fill=fill)
    own = Model(replace(CONFIG, text=text), model.backbone.state_dict(), "cpu")
    prompts = ["a cat", "a longer prompt", "a dog"]
    beside = draw(own, 3, text=prompts, batch=2)
    for i, prompt in enumerate(prompts):
        assert torch.equal(draw(own, 1, text=prompt, first=i, batch=2)[0], beside[i])
    # A network that sees what is padding draws the same, however much of it there is.
    assert (beside.int() - draw(model, 3, text=prompts, batch=2).int()).abs().max() <= 1


def test_no_prompt_is_the_empty_one_and_so_is_no_negative_prompt(model):
    nothing = model.reader([""]).cond()
    bare = Model(CONFIG, model.backbone.state_dict(), "cpu", nothing)
    assert torch.equal(draw(bare, 2), draw(model, 2))
    assert torch.equal(draw(bare, 2, text="a cat"), draw(model, 2, text="a cat"))
    away = draw(model, 2, text="a cat", negative="a dog")
    assert not torch.equal(away, draw(model, 2, text="a cat"))
    # Guided from a prompt to itself, nothing is guided.
    same = draw(model, 2, text="a cat", negative="a cat", guidance=3.0)
    assert (same.int() - draw(model, 2, text="a cat", guidance=1.0).int()).abs().max() <= 1


def test_guidance_is_linear_in_prompt_and_negative_prompt(model):
    x, sigma = torch.randn(2, 3, 8, 12), torch.tensor([0.5, 3.0])
    cat, dog = (model.reader([word] * 2).cond() for word in ("a cat", "a dog"))
    assert not torch.equal(model.denoised(x, sigma, cat), model.denoised(x, sigma, dog))
    assert torch.equal(model.denoised(x, sigma), model.denoised(x, sigma, model.reader(["", ""]).cond()))


def test_a_saved_model_keeps_its_encoder_and_what_nothing_means(model, tmp_path):
    whole = Model(CONFIG, model.backbone.state_dict(), "cpu", model.reader([""]).cond())
    again = ps.load(whole.save(tmp_path / "model"), device="cpu")
    assert again.config == CONFIG and torch.equal(draw(again, text="a cat"), draw(model, text="a cat"))
    assert all(torch.equal(rows, again.nothing[name]) for name, rows in whole.nothing.items())


def test_an_encoder_that_is_not_the_one_trained_with_is_refused(model):
    other = Model(replace(CONFIG, text=Bytes(12)), model.backbone.state_dict(), "cpu")
    with pytest.raises(UserError, match="was trained with bytes up to 24, and the encoder is now bytes up to 12"):
        draw(other, text="a cat")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": " \n"}, r"text: prompt 1 of 1 is blank: ' \\n'"),
        ({"text": ["a", ""]}, "text: prompt 2 of 2 is blank"),
        ({"text": []}, "text: 0 prompts for 1 images"),
        ({"n": 3, "text": ["a", "b"]}, "text: 2 prompts for 3 images; n must be a multiple"),
        ({"text": "a", "negative": " "}, "negative: prompt 1 of 1 is blank"),
        ({"text": "a", "negative": "b", "guidance": 1.0}, "negative: without guidance"),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused(model, given, message):
    with pytest.raises(UserError, match=message):
        draw(model, **given)


def test_a_model_without_words_or_another_place_for_them_says_so(model):
    backbone = replace(CONFIG.backbone, text=None, levels=(Level(16, 1, Global(8)),))
    mute = Model(replace(CONFIG, backbone=backbone, text=None), backbone.build().state_dict(), "cpu")
    for given in ({"text": "a cat"}, {"negative": "a cat"}):
        with pytest.raises(UserError, match="this model reads no text; leave it out"):
            draw(mute, **given)
    with pytest.raises(UserError, match="reads no text"):
        mute.use_text("elsewhere")
    with pytest.raises(UserError, match="Bytes is part of an installed package"):
        model.use_text("elsewhere")


def test_the_images_of_items_are_the_same_of_one_process_and_of_two(model, tmp_path):
    items = {f"item-{i}": f"{i} cats" for i in range(5)}

    def drawn(place, **share):
        folder = draw_items(model, items, tmp_path / place, {"steps": 2}, 3, 2, progress=False, **share)
        return {path.name: path.read_bytes() for path in folder.glob("*.png")}

    assert sorted(drawn("two", rank=1, world=2)) == ["item-2.png", "item-3.png"]
    assert drawn("two", rank=0, world=2) == drawn("one") and len(drawn("one")) == 5
