import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixelspace.nn.conv import ImageAttention, ResBlock, Rotary, RowAttention, Upsample
from pixelspace.nn.frames import TimeResample, tiled, untiled


def awake(layer):
    for parameter in layer.double().parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return layer


def test_image_attention_is_two_softmaxes_of_the_same_queries():
    layer, x = awake(ImageAttention(8, 2, 4, text_width=6)), torch.randn(3, 8, 4, 5, dtype=torch.float64)
    text, seen = torch.randn(3, 7, 6, dtype=torch.float64), torch.arange(7) < torch.tensor([[7], [3], [1]])
    mask = torch.zeros(3, 1, 1, 7, dtype=torch.float64).masked_fill(~seen[:, None, None], -torch.inf)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)
    more_k, more_v = layer.kv_cond(layer.norm_cond(text)).transpose(1, 2).chunk(2, 1)
    found = torch.zeros(3, 8, 20, dtype=torch.float64)
    for b in range(3):
        for rows in (slice(0, 4), slice(4, 8)):
            own = (q[b, rows].T @ k[b, rows] / 2).softmax(-1)
            words = seen[b].nonzero()[:, 0]
            cross = (q[b, rows].T @ more_k[b, rows][:, words] / 2).softmax(-1)
            found[b, rows] = v[b, rows] @ own.T + more_v[b, rows][:, words] @ cross.T
    expected = x + layer.proj_out(found.unflatten(2, (4, 5)))
    torch.testing.assert_close(layer(x, text, mask), expected)


def test_a_row_s_attention_is_a_softmax_within_heads():
    layer, x = awake(RowAttention(8, 2)), torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(x)).chunk(3, -1)
    heads = [(q[..., r] @ k[..., r].mT / 2).softmax(-1) @ v[..., r] for r in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(layer(x), x + layer.proj_out(torch.cat(heads, -1)))


def test_rotary_embedding_turns_complex_numbers():
    rotary, x = Rotary(32).double(), torch.randn(2, 3, 6, 32, dtype=torch.float64)
    rates = 10000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)
    turns = torch.polar(torch.ones(6, 16, dtype=torch.float64), torch.arange(6)[:, None] * rates)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (16, 2))) * turns).flatten(-2)
    torch.testing.assert_close(rotary(x), expected, rtol=1e-6, atol=1e-6)
    assert rotary.freqs.shape == (16,) and not rotary.freqs.requires_grad


def test_frames_of_a_sample_share_its_condition():
    block = awake(ResBlock(8, 12, 16, groups=4))
    x, cond = torch.randn(2, 3, 8, 4, 4, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    found = block(x.flatten(0, 1), cond).unflatten(0, (2, 3))
    for frame in range(3):
        torch.testing.assert_close(found[:, frame], block(x[:, frame], cond))


def test_a_clip_is_an_image_of_frames_row_by_row():
    clip = torch.arange(2 * 16).reshape(32, 1, 1, 1).expand(32, 3, 2, 5).float()
    image = tiled(clip, 4)
    assert image.shape == (2, 3, 8, 20)
    for frame in range(16):
        row, column = frame // 4, frame % 4
        tile = image[1, :, 2 * row : 2 * row + 2, 5 * column : 5 * column + 5]
        assert (tile == 16 + frame).all()
    assert torch.equal(untiled(image, 4), clip)


@pytest.mark.parametrize("up", [False, True])
def test_resampling_in_time_is_a_convolution_of_each_place(up):
    layer, x = TimeResample(4, up).double(), torch.randn(2, 8, 4, 3, 5, dtype=torch.float64)
    found = layer(x.flatten(0, 1), 8).unflatten(0, (2, -1))
    assert found.shape == (2, 16 if up else 4, 4, 3, 5)
    row = x[1, :, :, 2, 4].T  # (C, T) of one place
    row = row.repeat_interleave(2, 1) if up else row
    expected = nn.functional.conv1d(row, layer.weight, layer.bias, stride=1 if up else 2, padding=1)
    torch.testing.assert_close(found[1, :, :, 2, 4].T, expected)


@pytest.mark.parametrize("batch", [1, 3])  # of the second the taps are summed first
def test_a_convolution_at_twice_the_size_is_one_of_repeated_pixels(batch):
    layer, x = Upsample(4).double(), torch.randn(batch, 4, 18, 20, dtype=torch.float64, requires_grad=True)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    outs = layer(x), F.conv2d(repeated, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(*outs)
    gradients = (torch.autograd.grad(out.cos().sum(), [x, *layer.parameters()]) for out in outs)
    torch.testing.assert_close(*gradients)
