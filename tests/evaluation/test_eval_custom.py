"""Any function as an extractor, and the precision that all are run in."""

from pathlib import Path

import pytest
import torch

from pixelspace.errors import UserError
from pixelspace.evaluation.custom import Custom
from pixelspace.evaluation.features import extract, full_precision
from pixelspace.evaluation.weights import Weights

CPU, NOWHERE = torch.device("cpu"), Weights(Path("no weights"))


def custom(function, width):
    return Custom(function, name="mean colour", output="mean.rgb", width=width, sha256="")


@pytest.mark.parametrize("shape", [(7, 3, 4, 5), (7, 3, 2, 4, 5)], ids=["images", "clips"])
def test_any_function_of_pixels_is_an_extractor(shape):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    extractor = custom(lambda x: x.double().flatten(2).mean(2), 3)
    found = extract(extractor.open(NOWHERE, CPU), pixels, batch=4)
    assert list(found) == list(extractor.outputs) == ["mean.rgb"] and found["mean.rgb"].dtype == torch.float32
    torch.testing.assert_close(found["mean.rgb"], pixels.float().flatten(2).mean(2))


def test_features_of_another_width_than_was_said_are_refused():
    opened = custom(lambda x: x.flatten(1).float(), 5).open(NOWHERE, CPU)
    with pytest.raises(UserError, match=r"mean colour: gave \(2, 12\) for 2 images; expected \(2, 5\)"):
        opened.compute(torch.zeros(2, 3, 2, 2, dtype=torch.uint8))


def test_a_width_of_nothing_is_refused():
    with pytest.raises(UserError, match="mean colour: its width must be positive"):
        custom(lambda x: x, 0)


def test_features_are_in_full_precision_and_what_was_set_before_comes_back():
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), full_precision():
            assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
            assert torch.get_float32_matmul_precision() == "highest" and not cudnn.allow_tf32
            assert torch.is_inference_mode_enabled()
        assert torch.get_float32_matmul_precision() == "medium" and cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
