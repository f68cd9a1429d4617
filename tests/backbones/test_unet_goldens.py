"""UNets against outputs and activations of the original implementation, by its own weights, and its released networks'
names, shapes and costs."""

import pytest
import torch

from pixelspace.interop.ml_mdm import read_model, released

CASES = [
    "unet_text",
    "unet_text_masked_lmhead",
    "nested2_text",
    "nested2_text_outer_attention",
    "nested2_notext",
    "nested3_notext",
    "nested3_temporal_spatial",
]
# Parameters, tensors, and GMAC with 32 and with 128 tokens of text.
RELEASED = {
    64: (461_359_107, 713, 181.97, 192.72),
    256: (476_613_958, 889, 294.54, 305.29),
    1024: (480_970_057, 1063, 509.30, 520.04),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_activations_meet_the_golden(golden, golden_json, case):
    stored, described = golden(f"mdm/{case}"), golden_json(f"mdm/{case}")
    weights = {name.removeprefix("sd."): tensor for name, tensor in stored.items() if name.startswith("sd.")}
    read = read_model(weights, described["config"])
    network = read.backbone.build().eval()
    network.load_state_dict(read.weights)
    assert sum(parameter.numel() for parameter in network.parameters()) == described["params"]

    found = {}
    for name in described["act_stats"]:
        network.get_submodule(name).register_forward_hook(
            lambda module, given, out, name=name: found.update({name: out[0] if isinstance(out, tuple) else out})
        )
    xs = [stored[f"in.x{level}"] for level in range(len(read.backbone.pyramid))]
    micro = {name.removeprefix("in.micro."): t for name, t in stored.items() if name.startswith("in.micro.")}
    with torch.no_grad():
        outs = network(xs, stored["in.times"], {"text": stored["in.lm"], "text_mask": stored["in.mask"], **micro})

    for level, out in enumerate(outs):
        torch.testing.assert_close(out, stored[f"out.p{level}"], rtol=0, atol=1e-5)
    for name in stored:
        if name.startswith("act."):
            torch.testing.assert_close(found[name.removeprefix("act.")], stored[name], rtol=0, atol=1e-5)
    for name, expected in described["act_stats"].items():
        act = found[name]
        assert list(act.shape) == expected["shape"], name
        assert act.flatten()[:6].tolist() == pytest.approx(expected["first"], abs=1e-5), name
        assert float(act.mean()) == pytest.approx(expected["mean"], abs=1e-5), name
        assert float(act.std(correction=0)) == pytest.approx(expected["std"], rel=1e-4), name
        assert float(act.abs().max()) == pytest.approx(expected["absmax"], rel=1e-5), name


@pytest.fixture
def tables(golden_json):
    """Names and shapes of the released networks; the stored ones of a level leave out those of the levels inside it."""
    inner, found = {}, {}
    for size, own in golden_json("mdm/state_dicts").items():
        inner = {**own, **{f"inner_unet.{name}": shape for name, shape in inner.items()}}
        found[int(size)] = inner
    return found


@pytest.mark.parametrize("size", RELEASED)
def test_names_shapes_and_costs_are_those_of_the_released_networks(tables, size):
    parameters, tensors, *gmacs = RELEASED[size]
    config = released(size)
    with torch.device("meta"):
        network = config.build()
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == tables[size]
    assert len(tables[size]) == tensors
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    for tokens, gmac in zip((32, 128), gmacs, strict=True):
        assert config.macs(size, size, tokens=tokens) / 1e9 == pytest.approx(gmac, abs=0.006)
