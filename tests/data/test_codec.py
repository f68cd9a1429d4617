import torch

from pixelspace.data.codec import Pixels, to_uint8
from pixelspace.random import Rng

BYTES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_every_byte_survives_the_codec():
    x = Pixels().encode(BYTES, Rng(0), torch.arange(1))
    assert float(x.min()) == -1 and float(x.max()) == 1
    assert torch.equal(Pixels().decode(x), BYTES)
    assert Pixels().decode(torch.tensor([[[[-3.0, 3.0]]]])).flatten().tolist() == [0, 255]


def test_rounding_is_true_on_average_and_cutting_off_darkens_by_half_a_level():
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    levels = (x + 1) * 127.5
    assert abs(float((to_uint8(x).double() - levels).mean())) < 1e-4
    assert abs(float((to_uint8(x, truncate=True).double() - levels).mean()) + 0.5) < 5e-3


def test_a_codec_cuts_off_only_when_told():
    x = torch.tensor([[[[(10.9 / 127.5) - 1]]]])
    assert Pixels().decode(x).item() == 11 and Pixels().decode(x, truncate=True).item() == 10
