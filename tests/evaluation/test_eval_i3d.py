"""The network of FVD, with random weights: its public ones were not to be had."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pixelspace.errors import CheckpointError, DataError, ResourceError
from pixelspace.evaluation import i3d
from pixelspace.evaluation.features import extract
from pixelspace.evaluation.i3d import I3D, I3DNetwork, normalised, padded
from pixelspace.evaluation.weights import Weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    """With weights under which no layer is silent."""
    torch.manual_seed(0)
    network = I3DNetwork().eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if name.endswith("conv3d.weight"):
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("bias") or name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return network


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    where = tmp_path_factory.mktemp("weights")
    torch.save(network.state_dict(), where / i3d.WEIGHTS.name)
    return where


def clips(n=1, frames=9, size=(40, 56)):
    return torch.randint(0, 256, (n, 3, frames, *size), dtype=torch.uint8)


@pytest.mark.parametrize("length", range(1, 30))
@pytest.mark.parametrize("kernel, stride", [(1, 1), (2, 2), (3, 1), (3, 2), (7, 2)])
def test_padding_leaves_one_place_for_each_stride_and_one_more_zero_behind(length, kernel, stride):
    x = torch.arange(1.0, length + 1).view(1, 1, length, 1, 1)
    made = padded(x, (kernel, 1, 1), (stride, 1, 1))[0, 0, :, 0, 0]
    before = int((made != 0).nonzero()[0])
    behind = len(made) - length - before
    assert (len(made) - kernel) // stride + 1 == -(-length // stride)
    assert behind - before in (0, 1)


@pytest.mark.parametrize("kernel, stride", [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))])
def test_after_relu_maxima_are_those_that_leave_padding_out(kernel, stride):
    x = torch.randint(0, 99, (1, 2, 5, 7, 8)).float()
    never = padded(x + 1, kernel, stride) - 1  # -1 around, which is below all there is
    assert torch.equal(i3d._max(x, kernel, stride), F.max_pool3d(never, kernel, stride))


def test_the_network_has_the_names_and_shapes_of_the_public_file():
    own = {name: tuple(tensor.shape) for name, tensor in I3DNetwork().state_dict().items()}
    units = {name.removesuffix(".conv3d.weight") for name in own if name.endswith(".conv3d.weight")}
    branches = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
    mixed = {f"Mixed_{place}.{branch}" for place in "3b 3c 4b 4c 4d 4e 4f 5b 5c".split() for branch in branches}
    assert units == {"Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "logits"} | mixed
    assert own["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7) and own["logits.conv3d.weight"] == (
        400,
        1024,
        1,
        1,
        1,
    )
    assert len(own) == 57 * 6 + 2


def by_the_paper(weights, x):
    """Figure 3 of Carreira & Zisserman (2017), its layers by their names in the file, written without modules."""

    def unit(x, name, stride=1):
        kernel = weights[f"{name}.conv3d.weight"]
        x = F.conv3d(padded(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
        norm = [weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm, eps=1e-5).relu()

    def maximum(x, kernel, stride):
        return F.max_pool3d(padded(x, kernel, stride), kernel, stride)

    x = maximum(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = maximum(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for place in "3b 3c | 4b 4c 4d 4e 4f || 5b 5c".split():
        if set(place) == {"|"}:
            kernel = (3, 3, 3) if place == "|" else (2, 2, 2)
            x = maximum(x, kernel, (2, 2, 2))
            continue
        at = f"Mixed_{place}"
        one, pooled = unit(x, f"{at}.b0"), unit(maximum(x, (3, 3, 3), (1, 1, 1)), f"{at}.b3b")
        two, three = (unit(unit(x, f"{at}.b{i}a"), f"{at}.b{i}b") for i in (1, 2))
        x = torch.cat([one, two, three, pooled], 1)
    x = F.avg_pool3d(x, (2, 7, 7), 1)
    return F.conv3d(x, weights["logits.conv3d.weight"], weights["logits.conv3d.bias"])[..., 0, 0].mean(2)


@pytest.mark.parametrize("frames", [9, 17])
def test_the_network_is_the_papers_figure_written_out(network, frames):
    x = normalised(clips(1, frames))
    found = network(x)
    assert found.shape == (1, 400) and found.std() > 0.1
    torch.testing.assert_close(found, by_the_paper(network.state_dict(), x), rtol=1e-4, atol=1e-4)


def test_frames_keep_their_order_and_their_scale():
    still = torch.tensor([0, 51, 255], dtype=torch.uint8)[None, None, :, None, None].expand(2, 3, 3, 10, 12)
    x = normalised(still)
    assert x.shape == (2, 3, 3, 224, 224)
    expected = torch.tensor([-1, -0.6, 1])[None, None, :, None, None].expand_as(x)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


def test_the_extractor_gives_logits_of_each_clip_alone_and_says_that_it_is_unverified(folder, network):
    opened, two = I3D().open(Weights(folder), CPU), clips(2)
    found = extract(opened, two, batch=2)["i3d.logits"]
    assert found.shape == (2, I3D().outputs["i3d.logits"]) and not torch.allclose(found[0], found[1])
    torch.testing.assert_close(found[1:], network(normalised(two[1:])))
    assert "unverified" in I3D().name and "unverified" in I3D.__doc__


@pytest.mark.parametrize("wrong", [clips(frames=8), clips()[:, :, 0]], ids=["8 frames", "images"])
def test_what_is_too_short_for_it_is_refused(folder, wrong):
    with pytest.raises(DataError, match=r"I3D: expected clips .* of 9 frames or more, found"):
        I3D().open(Weights(folder), CPU).compute(wrong)


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(ResourceError, match=r"i3d_pretrained_400\.pt: no such weights"):
        I3D().open(Weights(tmp_path, download=True), CPU)


def test_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(i3d, "WEIGHTS", replace(i3d.WEIGHTS, name="other.pt"))
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt: the weights are of another architecture"):
        I3D().open(Weights(tmp_path), CPU)
