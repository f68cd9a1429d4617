"""Prompts of imported ml-mdm models: padded as upstream does, to the longer of a prompt and its negative one."""

import json
from dataclasses import replace

import pytest
import torch

import pixelspace as ps
from pixelspace.interop.ml_mdm import read_config
from pixelspace.model import Model
from pixelspace.text.pretrained import Pretrained
from tests.conftest import GOLDENS

SHORT, LONG, NEGATIVE = "a cat", "the quick brown fox jumps over the lazy dog", "a blue cube on a red sphere"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.text.text_models import t5  # transformers takes seconds to import

    torch.manual_seed(0)
    return t5(tmp_path_factory.mktemp("encoders") / "t5")


@pytest.fixture(scope="module")
def model(folder):
    config = json.loads((GOLDENS / "mdm/nested2_text.json").read_text())["config"]
    config["conditioning_feature_dim"] = 16
    torch.manual_seed(0)
    network = read_config(config).build()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    imported = ps.import_checkpoint(network.state_dict(), system="ml-mdm", config=config, device="cpu")
    assert imported.config.text == Pretrained("google/flan-t5-xl", 128, False, "fp32", "mdm")
    assert imported.config.text_identity == ""
    return imported.use_text(folder)


def draw(model, n, **given):
    return model.sample(n, steps=2, progress=False, exact=True, batch=2, **given)


@pytest.fixture
def heard(model):
    """The text of each call of the network."""
    texts = []

    def note(module, given):
        texts.append({name: given[2][name] for name in ("text", "text_mask")})

    hook = model.backbone.register_forward_pre_hook(note)
    yield texts
    hook.remove()


@pytest.mark.parametrize("negative", [None, NEGATIVE])
@pytest.mark.parametrize("prompt", [SHORT, LONG])
def test_a_prompt_and_its_negative_one_are_as_long_as_the_longer(model, heard, prompt, negative):
    draw(model, 1, text=prompt, negative=negative, guidance=3.0)
    both = model.reader([negative or "", prompt])
    assert both.tokens.shape[1] == max(model.reader.lengths([negative or "", prompt]))
    for found in heard:  # a batch of two, filled up
        assert torch.equal(found["text"], both.tokens[[0, 0, 1, 1]])
        assert torch.equal(found["text_mask"], both.mask[[0, 0, 1, 1]])


def test_without_guidance_a_prompt_has_no_padding(model, heard):
    draw(model, 2, text=[SHORT, LONG])
    lengths = model.reader.lengths([SHORT, LONG])
    assert lengths[0] < lengths[1] and {found["text"].shape[1] for found in heard} == set(lengths)
    assert all(found["text_mask"].all() for found in heard)


def test_an_image_is_the_same_beside_a_longer_prompt_although_padding_is_attended_to(model):
    text, negative = [SHORT, LONG, NEGATIVE], ["a mat", "a mat", LONG]
    beside = draw(model, 6, text=text, negative=negative, guidance=3.0)
    for i in range(6):
        one = {"text": text[i % 3], "negative": negative[i % 3]}
        assert torch.equal(draw(model, 1, first=i, guidance=3.0, **one)[0], beside[i])
    x, cond = [torch.randn(1, 3, 32, 32), torch.randn(1, 3, 8, 8)], model.reader([SHORT]).cond()
    away = Model(replace(model.config, text=Pretrained("no/where")), model.backbone.state_dict(), "cpu")
    assert torch.equal(away.denoised(x, 1.0, cond)[0], model.denoised(x, 1.0, cond)[0])  # text that is read already
    padded = {name: rows[:1] for name, rows in model.reader([SHORT, LONG]).cond().items()}
    assert not torch.allclose(model.denoised(x, 1.0, cond)[0], model.denoised(x, 1.0, padded)[0], atol=0.1)
