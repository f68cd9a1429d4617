"""MaskDiT against outputs, losses and gradients of the original implementation, by its own weights."""

import pytest
import torch

from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.nn.embed import sincos_positions, timestep_features
from pixelspace.noise.levels import LogNormal
from pixelspace.noise.process import EDM, Process
from pixelspace.objectives.masked import Masked
from pixelspace.recipes.maskdit import DECODERS, SIZES, dit, maskdit
from pixelspace.sampling.denoiser import guided
from pixelspace.types import Batch, Draw

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
PROCESS = Process(EDM(0.5))
TINY = MaskDiTConfig(64, 2, 4, (8, 8), num_classes=10, decoder=Decoder(32, 2, 4))
SMALL = MaskDiTConfig(32, 1, 2, (8, 8), num_classes=10, decoder=None)
VARIANTS = {
    "no_decoder": SMALL,
    "decoder_no_mae": MaskDiTConfig(32, 1, 2, (8, 8), num_classes=10, decoder=Decoder(32, 2, 4, mask_token=False)),
    "cls_token": MaskDiTConfig(32, 1, 2, (8, 8), num_classes=10, decoder=Decoder(32, 2, 4), cls_token=True),
    "cls_token_direct": MaskDiTConfig(
        32, 1, 2, (8, 8), num_classes=10, decoder=Decoder(32, 2, 4, takes_cls=True), cls_token=True
    ),
}


def loaded(config, weights, prefix):
    network = config.build().eval()
    network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return network


@pytest.fixture
def network(golden):
    return loaded(TINY, golden("maskdit/tiny_state_dict"), "model.")


def denoised(network, x, sigma, cond, **keep):
    inputs, c_noise = PROCESS.inputs(x, sigma)
    with torch.no_grad():
        return PROCESS.denoised(network(inputs, c_noise, cond, **keep), x, sigma)


def test_outputs_meet_the_golden(golden, network):
    stored = golden("maskdit/core_forward")
    x, t, cond = stored["in.x"], stored["in.t"], {"label": stored["in.y"]}
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, cond), stored["eval.out"], **CLOSE)
        for ratio in ("0.25", "0.5", "0.75"):
            found = network(x, t, cond, keep=stored[f"train_m{ratio}.ids_keep"])
            torch.testing.assert_close(found, stored[f"train_m{ratio}.out"], **CLOSE)
        torch.testing.assert_close(network.encode(x, t, cond), stored["encode.unmasked.feat"], **CLOSE)
        half = network.encode(x, t, cond, keep=stored["train_m0.5.ids_keep"])
        torch.testing.assert_close(half, stored["encode.m0.5.feat"], **CLOSE)


@pytest.mark.parametrize("tag", ["eval", "train_m0.5"])
def test_every_layer_meets_the_golden(golden, network, tag):
    stored, found = golden("maskdit/core_forward"), {}
    for name in ("x_embedder", "t_embedder", "y_embedder", "blocks.0", "blocks.1", "decoder_layer", "decoder_blocks.0"):
        network.get_submodule(name).register_forward_hook(lambda m, given, out, name=name: found.update({name: out}))
    keep = {} if tag == "eval" else {"keep": stored[f"{tag}.ids_keep"]}
    with torch.no_grad():
        network(stored["in.x"], stored["in.t"], {"label": stored["in.y"]}, **keep)
    assert len(found) == 7
    for name, out in found.items():
        torch.testing.assert_close(out, stored[f"{tag}.act.{name}"], **CLOSE)


def test_denoised_estimates_meet_the_golden(golden, network):
    stored = golden("maskdit/precond")
    cond, null = {"label": stored["in.y"]}, {"label": torch.zeros_like(stored["in.y"])}
    for case in ("a", "b"):
        x, sigma = stored[f"{case}.x"], stored[f"{case}.sigma"]
        torch.testing.assert_close(denoised(network, x, sigma, cond), stored[f"{case}.eval.D"], **CLOSE)
        torch.testing.assert_close(denoised(network, x, sigma, null), stored[f"{case}.eval.D_null"], **CLOSE)
        inputs, c_noise = PROCESS.inputs(x, sigma)
        with torch.no_grad():
            torch.testing.assert_close(network.encode(inputs, c_noise, cond), stored[f"{case}.eval.feat"], **CLOSE)
    for ratio in ("0.25", "0.5", "0.75"):
        found = denoised(network, x, sigma, cond, keep=stored[f"mask_m{ratio}.ids_keep"])
        torch.testing.assert_close(found, stored[f"b.train_m{ratio}.D"], **CLOSE)


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("per_sample", [False, True])
def test_guidance_meets_the_golden_at_any_shape_of_sigma(golden, network, scale, per_sample):
    stored = golden("maskdit/precond")
    x, sigma = stored["cfg.x"], stored["cfg.sigma"].float()
    cond, null = {"label": stored["in.y"]}, {"label": torch.zeros_like(stored["in.y"])}
    with torch.no_grad():
        found = guided(network, PROCESS, cond, null, scale)(x, sigma.expand(3) if per_sample else sigma)
    torch.testing.assert_close(found, stored[f"cfg.D_w{scale}"], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_meet_the_golden(golden, name):
    stored = golden(f"maskdit/variant_{name}")
    network, cond = loaded(VARIANTS[name], stored, "sd.model."), {"label": stored["y"]}
    x, sigma = stored["x"], stored["sigma"]
    torch.testing.assert_close(denoised(network, x, sigma, cond), stored["eval.D"], **CLOSE)
    found = denoised(network, x, sigma, cond, keep=stored["ids_keep"])
    torch.testing.assert_close(found, stored["train_m0.5.D"], **CLOSE)


@pytest.mark.parametrize("case", ["m0_c0", *(f"m{r}_c{c}" for r in ("0.25", "0.5", "0.75") for c in ("0", "0.1"))])
def test_losses_and_gradients_meet_the_golden(golden, golden_json, network, case):
    stored = golden("maskdit/loss")
    ratio, _, mae = case[1:].partition("_c")
    keep = None
    if float(ratio):
        mask = stored[f"{case}.mask"]
        keep = stored[f"{case}.mask_noise"].argsort()[:, : int((mask[0] == 0).sum())]
        assert torch.equal(torch.ones_like(mask).scatter(1, keep, 0), mask)
    batch = Batch(stored["images"], {"label": stored["labels"]}, torch.arange(3))
    draw = Draw(stored[f"{case}.sigma"].flatten(), stored[f"{case}.noise"], None, keep)
    loss = Masked(PROCESS, LogNormal(-1.2, 1.2), (2, 2), mae=float(mae)).loss(network, batch, draw)
    torch.testing.assert_close(loss, stored[f"{case}.loss"], rtol=1e-5, atol=0)

    loss.mean().backward()
    for name, norm in golden_json("maskdit/loss")["results"][case]["grad_norms"].items():
        gradient = network.get_parameter(name.removeprefix("model.")).grad
        assert float(0 if gradient is None else gradient.norm()) == pytest.approx(norm, rel=1e-5, abs=1e-9), name
        if (whole := stored.get(f"{case}.grad.{name}")) is not None and gradient is not None:
            torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-6)


def test_tables_meet_the_golden(golden):
    stored = golden("maskdit/tables")
    torch.testing.assert_close(sincos_positions(4, 4, 64), stored["pos_64_g4_f64"], rtol=0, atol=1e-15)
    for width, grid in ((1152, 16), (512, 16), (1152, 32), (512, 32)):
        table = sincos_positions(grid, grid, width).float()
        rows = stored[f"pos_{width}_g{grid}_rowidx"]
        assert torch.equal(table[rows], stored[f"pos_{width}_g{grid}_rows"])
    torch.testing.assert_close(timestep_features(stored["t"], 256), stored["timestep_256"], **CLOSE)
    torch.testing.assert_close(timestep_features(stored["t"], 7), stored["timestep_7"], **CLOSE)


def test_a_fresh_network_has_the_original_s_statistics(golden_json):
    stats, network = golden_json("maskdit/init_stats"), TINY.build()
    own = dict(network.named_parameters())
    assert {f"model.{name}" for name in own} == stats.keys()
    for name, expected in stats.items():
        tensor = own[name.removeprefix("model.")]
        assert list(tensor.shape) == expected["shape"]
        assert (not tensor.any()) == expected["all_zero"], name
        if tensor.numel() >= 256 and not expected["all_zero"]:
            assert float(tensor.detach().std()) == pytest.approx(expected["std"], rel=0.15), name


@pytest.mark.parametrize("size", [32, 64])
def test_names_and_shapes_are_those_of_the_released_networks(golden_json, size):
    expected = golden_json("maskdit/maskdit_keys_XL2")[f"DiT-XL/2 latent {size} use_decoder mae"]
    with torch.device("meta"):
        network = maskdit("XL", size=(size, size)).build()
    assert {f"model.{name}": list(tensor.shape) for name, tensor in network.state_dict().items()} == expected


# Parameters with the position tables, and GMAC at mask 0, 0.25, 0.5 and 0.75.
COUNTS = {
    ("DiT-XL/2", 32): (675_110_032, (118.62, 88.23, 58.37, 29.04)),
    ("DiT-XL/2", 64): (675_994_768, (524.52, 380.77, 245.47, 118.63)),
    ("XL", 32): (730_541_200, (125.78, 95.35, 65.45, 36.08)),
    ("XL", 64): (731_819_152, (559.50, 415.61, 280.16, 153.18)),
    ("H", 32): (1_010_002_192, (173.94, 131.28, 89.30, 47.98)),
    ("L", 32): (510_176_272, (87.83, 67.06, 46.69, 26.73)),
    ("B", 32): (175_909_648, (30.10, 24.11, 18.27, 12.59)),
    ("S", 32): (68_346_256, (13.09, 11.46, 9.90, 8.41)),
}


@pytest.mark.parametrize(("name", "size"), COUNTS)
def test_counts_are_those_of_the_paper_s_code(name, size):
    params, gmacs = COUNTS[name, size]
    square = (size, size)
    config = dit("XL", size=square) if name == "DiT-XL/2" else maskdit(name, size=square, decoder=Decoder())
    with torch.device("meta"):
        network = config.build()
    assert sum(parameter.numel() for parameter in network.parameters()) == params
    tokens = (size // 2) ** 2
    for ratio, gmac in zip((0, 0.25, 0.5, 0.75), gmacs, strict=True):
        assert config.macs(size, size, int(tokens * (1 - ratio))) / 1e9 == pytest.approx(gmac, abs=0.006)


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("name", SIZES)
def test_every_size_builds_and_masking_makes_it_cheaper_than_dit(name, patch):
    plain, masked = dit(name, patch), maskdit(name, patch)
    with torch.device("meta"):
        assert plain.build().units() and masked.build().units()
    whole = plain.macs(32, 32)
    tokens = (32 // patch) ** 2
    assert masked.macs(32, 32, tokens // 2) < 0.62 * whole and masked.macs(32, 32) < 1.1 * whole
    decoder = DECODERS[name]
    assert 0.1 < decoder.depth / plain.depth < 0.35 and 0.3 < decoder.width / plain.width < 0.5
