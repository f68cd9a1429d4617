"""Text in networks: filling changes nothing, fresh layers say nothing, costs are as stated."""

import pytest
import torch
from torch import nn

from pixelspace.nn.norm import AdaRMSNorm
from pixelspace.nn.text import CrossAttention, Text, TextInput

TEXT = Text(6, 5, inner=16, depth=2, head_dim=8)


def awake(module):
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return module.double()


def words(lengths, filled):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(len(lengths), filled, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(filled) < torch.tensor(lengths)[:, None]
    pooled = torch.randn(len(lengths), 5, generator=generator, dtype=torch.float64)
    return {"text": tokens, "text_mask": mask, "pooled": pooled}


def test_what_stands_behind_a_captions_end_changes_nothing():
    network, cond = awake(TextInput(TEXT, 7)), words([3, 5, 1], 5)
    tokens, mask, summary = network(cond)
    other = {**cond, "text": torch.where(cond["text_mask"][..., None], cond["text"], torch.tensor(9.0))}
    changed, _, same = network(other)
    torch.testing.assert_close(same, summary, rtol=1e-12, atol=1e-12)
    shown = cond["text_mask"]
    torch.testing.assert_close(changed[shown], tokens[shown], rtol=1e-12, atol=1e-12)
    assert torch.equal(mask[:, 0, 0] == 0, shown)


def test_filling_up_further_changes_nothing():
    network, attention = awake(TextInput(TEXT, 7)), awake(CrossAttention(AdaRMSNorm(16, 7), 16, 16, 8))
    cond, x = words([3, 2], 3), torch.randn(2, 4, 4, 16, dtype=torch.float64)
    longer = {
        **cond,
        "text": nn.functional.pad(cond["text"], (0, 0, 0, 4)),
        "text_mask": nn.functional.pad(cond["text_mask"], (0, 4)),
    }
    outs = []
    for given in (cond, longer):
        tokens, mask, summary = network(given)
        outs.append((summary, attention(x, summary, tokens, mask)))
    for short, long in zip(*outs, strict=True):
        torch.testing.assert_close(long, short, rtol=1e-12, atol=1e-12)


def test_attention_to_text_is_a_softmax_of_scaled_cosines():
    attention, x = awake(CrossAttention(AdaRMSNorm(16, 7), 16, 16, 8)), torch.randn(1, 2, 3, 16, dtype=torch.float64)
    tokens, cond = torch.randn(1, 4, 16, dtype=torch.float64), torch.randn(1, 7, dtype=torch.float64)
    mask = torch.tensor([[0.0, 0.0, 0.0, -torch.inf]], dtype=torch.float64)[:, None, None]
    q = attention.q_proj(attention.norm(x, cond)).reshape(6, 2, 8)
    k, v = attention.kv_proj(tokens)[0, :3].reshape(3, 2, 2, 8).unbind(1)
    cosines = torch.einsum("qne,kne->nqk", nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1))
    weights = (attention.scale[:, None, None] * cosines).softmax(-1)
    expected = x + attention.out_proj(torch.einsum("nqk,kne->qne", weights, v).reshape(1, 2, 3, 16))
    torch.testing.assert_close(attention(x, cond, tokens, mask), expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_layer_lets_the_image_through():
    attention = CrossAttention(AdaRMSNorm(16, 7), 16, 16, 8)
    x = torch.randn(2, 4, 16)
    assert torch.equal(attention(x, torch.randn(2, 7), torch.randn(2, 3, 16), torch.zeros(2, 1, 1, 3)), x)


def test_macs_are_those_of_linear_maps_and_attention_products():
    network, cond, counted = TextInput(TEXT, 7).double(), words([4], 4), 0

    def count(module, inputs, output):
        nonlocal counted
        counted += inputs[0].numel() * module.out_features

    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    network(cond)
    assert TEXT.macs(7, 4) == counted + TEXT.depth * 2 * 4 * 4 * TEXT.inner


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"inner": 20}, "inner 20 is not a multiple of head_dim 8"), ({"width": 0}, "must be positive")],
)
def test_sizes_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Text(**{"width": 6, "pooled": 5, "inner": 16, "head_dim": 8, **wrong})
