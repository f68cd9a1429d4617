"""The network of FID with reproducible random weights (goldens/metrics/inception_arch)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.evaluation import inception
from pixelspace.evaluation.features import extract
from pixelspace.evaluation.inception import Inception, InceptionNetwork
from pixelspace.evaluation.weights import Weights, load_network, sha256_of
from tests.evaluation.inception_weights import weight

METRICS = Path(__file__).parents[1] / "goldens" / "metrics"
INPUTS = ("up_48x64", "down_512x400")
CPU = torch.device("cpu")


def image(name):
    return torch.from_numpy(np.array(Image.open(METRICS / f"resize_input_{name}.png"))).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def described(golden_json):
    return golden_json("metrics/inception_arch")


@pytest.fixture(scope="module")
def folder(described, tmp_path_factory):
    """Weights by the recipe, under the real file's name."""
    where = tmp_path_factory.mktemp("weights")
    weights = {name: weight(name, shape) for name, shape in described["state_dict_shapes"].items()}
    for name, first in described["sample_weights"].items():
        assert weights[name].flatten()[: len(first)].tolist() == pytest.approx(first)
    torch.save(weights, where / inception.WEIGHTS.name)
    return where


@pytest.fixture(scope="module")
def network(folder):
    network = InceptionNetwork().eval().requires_grad_(False)
    load_network(network, folder / inception.WEIGHTS.name)
    return network


@pytest.fixture
def opened(folder, monkeypatch):
    """Opens an extractor on the golden's weights, whose hash is not the real file's."""
    digest = sha256_of(folder / inception.WEIGHTS.name)
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=digest))
    return lambda resize: Inception(resize).open(Weights(folder), CPU)


def test_the_network_has_the_names_and_shapes_of_the_public_file(described):
    own = {name: list(tensor.shape) for name, tensor in InceptionNetwork().state_dict().items()}
    assert {name: shape for name, shape in own.items() if "batches" not in name} == described["state_dict_shapes"]
    assert len(own) == 566


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-5), (torch.float64, 3e-6)])
@pytest.mark.parametrize("name", INPUTS)
def test_the_network_is_torch_fidelitys(network, name, dtype, tolerance):
    expected, taps = np.load(METRICS / "inception_arch.npz"), {}
    watched = {"64": network.Conv2d_2b_3x3, "192": network.Conv2d_4a_3x3, "768": network.Mixed_6e}
    handles = [
        module.register_forward_hook(lambda _, __, out, tap=tap: taps.update({tap: out}))
        for tap, module in watched.items()
    ]
    found = network.to(dtype)(Inception().normalised(image(name)).to(dtype))
    for handle in handles:
        handle.remove()
    for tap in ("64", "192"):
        taps[tap] = F.max_pool2d(taps[tap], 3, 2)
    outputs = {tap: out.mean((2, 3)) for tap, out in taps.items()}
    outputs |= {"2048": found["pool"], "spatial": found["spatial"], "logits_unbiased": found["logits"]}
    outputs["logits"] = network.fc(found["pool"])
    for output, rows in outputs.items():
        np.testing.assert_allclose(
            rows[0].double().numpy(), expected[f"{name}__{output}"], 0, tolerance, err_msg=output
        )


@pytest.mark.parametrize("resize, low, high", [("tf1", -1, 127 / 128), ("clean", -1, 127 / 128), ("pytorch", -1, 1)])
def test_black_and_white_have_the_scale_of_the_named_system(resize, low, high):
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 20, 30)
    x = Inception(resize).normalised(images)
    assert x.shape == (2, 3, 299, 299) and x.dtype == torch.float32
    torch.testing.assert_close(x.amin((1, 2, 3)), torch.tensor([low, high], dtype=torch.float32))
    torch.testing.assert_close(x.amax((1, 2, 3)), torch.tensor([low, high], dtype=torch.float32))


def test_the_extractor_gives_what_it_says_by_name(opened, folder):
    images = image("up_48x64")
    found = extract(opened("tf1"), images, batch=1)
    assert {name: rows.shape for name, rows in found.items()} == {n: (1, d) for n, d in Inception().outputs.items()}
    assert all(rows.dtype == torch.float32 for rows in found.values())
    expected = np.load(METRICS / "inception_arch.npz")
    np.testing.assert_allclose(found["inception.pool"][0], expected["up_48x64__2048"], 0, 5e-5)
    assert opened("tf1").sha256 == sha256_of(folder / inception.WEIGHTS.name)


def test_another_resize_is_another_view_and_another_name(opened):
    pools = {
        resize: extract(opened(resize), image("up_48x64"), batch=1)["inception.pool"] for resize in ("tf1", "clean")
    }
    assert (pools["tf1"] - pools["clean"]).abs().max() > 1e-3
    assert len({Inception(resize).name for resize in ("tf1", "clean", "pytorch", "antialiased")}) == 4


def test_absent_weights_are_named_with_their_source_and_hash(tmp_path):
    with pytest.raises(ResourceError, match=r"6726825d\.pth: no such weights.*95,628,359 bytes, SHA-256 6726825d0a"):
        Inception().open(Weights(tmp_path), CPU)


def test_weights_by_the_right_name_with_another_hash_are_refused(folder):
    with pytest.raises(CheckpointError, match=r"6726825d\.pth: is damaged or something else.*NVIDIA's .* not read"):
        Inception().open(Weights(folder), CPU)
