"""What our UNets and MaskDiT are timed against computes the same."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from pixelspace.backbones.maskdit import Decoder
from pixelspace.backbones.nested import NestedUNetConfig
from tests.backbones.cases import MASKDIT, OUTER, PLAIN_DIT, PLAIN_UNET, UNET, conditions
from tests.backbones.test_backbones import awake, first_to_last, given, shown

FOLDER = Path(__file__).parents[1] / "benchmarks"
WITHOUT_TEXT = replace(UNET, text=None)
CASES = {
    "unet": ("unet", WITHOUT_TEXT, (8, 12)),
    "unet-plain": ("unet", replace(PLAIN_UNET, squash=2.0), (8, 8)),
    "nested": ("unet", NestedUNetConfig(OUTER, NestedUNetConfig(OUTER, WITHOUT_TEXT, normalise=False)), (16, 24)),
    "maskdit": ("maskdit", MASKDIT, (8, 12)),
    "maskdit-zeros": ("maskdit", replace(MASKDIT, decoder=Decoder(16, 1, 2, mask_token=False)), (8, 12)),
    "dit": ("maskdit", PLAIN_DIT, (8, 8)),
}


@pytest.mark.parametrize(("module", "config", "size"), CASES.values(), ids=CASES)
def test_the_plain_way_of_writing_gives_the_same_numbers_and_gradients(module, config, size, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    ours, (x, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    plain = import_module(f"plain.{module}").plain(ours)
    for keep in ({}, shown(config, size, 3)):
        found = []
        for network in (ours, plain):
            network.zero_grad()
            out = first_to_last(network(x, c_noise, cond, **keep))
            out.square().sum().backward()
            found.append((out, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}))
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)  # waves of the time are of float32 in both
