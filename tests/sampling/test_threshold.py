import pytest
import torch

from pixelspace.sampling.threshold import THRESHOLDS, clip, dynamic, thresholded


@pytest.mark.parametrize("name", THRESHOLDS)
def test_an_image_in_range_stays_as_it_is(name):
    x0 = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(THRESHOLDS[name](x0), x0)


@pytest.mark.parametrize("name", ["clip", "dynamic", "deepfloyd"])
def test_a_thresholded_image_lies_in_range_and_each_image_is_treated_by_itself(name):
    x0 = torch.randn(4, 3, 8, 8) * torch.tensor([0.1, 1.0, 3.0, 300.0]).reshape(4, 1, 1, 1)
    found = THRESHOLDS[name](x0)
    assert float(found.abs().max()) <= 1
    assert torch.equal(found, torch.cat([THRESHOLDS[name](image) for image in x0.split(1)]))


def test_a_dynamic_threshold_scales_by_the_quantile_between_1_and_the_highest():
    x0 = torch.linspace(0, 2, 101, dtype=torch.float64).reshape(1, 101)
    torch.testing.assert_close(dynamic(x0, 0.9, 100.0), x0.clamp(max=1.8) / 1.8)
    torch.testing.assert_close(dynamic(x0, 0.9, 1.5), x0.clamp(max=1.5) / 1.5)
    torch.testing.assert_close(dynamic(x0, 0.25, 100.0), clip(x0))


def test_a_number_that_is_none_is_not_hidden():
    x0 = torch.tensor([[float("nan"), 0.5]])
    for threshold in THRESHOLDS.values():
        assert threshold(x0)[0, 0].isnan()


def test_a_thresholded_denoiser_keeps_its_estimates_in_range():
    denoise = thresholded(lambda x, sigma: 5 * x, clip)
    assert torch.equal(denoise(torch.tensor([[0.1, -3.0]]), torch.ones(1, 1)), torch.tensor([[0.5, -1.0]]))
