"""What a network knows: held to a denoiser whose error is known, and to networks with parts that were put out."""

import pytest
import torch

from pixelspace.api import load
from pixelspace.diagnosis.knowledge import errors, listening, sigmas_of
from pixelspace.model import Model


def images(n: int = 64, seed: int = 0) -> torch.Tensor:
    numbers = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 40 + 90
    return numbers.round().clamp(0, 255).to(torch.uint8)


class Guess(Model):
    """Knows of the images `known` no more than their mean and variance."""

    known: torch.Tensor

    def denoised(self, x, sigma, cond=None):
        share = self.known.var() / (self.known.var() + sigma**2)
        return [self.known.mean() + share * (level - self.known.mean()) for level in x]


@pytest.fixture
def model(run_folder):
    return load(run_folder, device="cpu")


def test_a_guess_by_mean_and_variance_errs_as_itself_at_any_noise_level(model):
    shown = images()
    for sigma in sigmas_of(model):
        guess = Guess(model.config, model.backbone.state_dict(), "cpu")
        guess.known = shown.float() / 127.5 - 1
        (share,) = errors(guess, shown, sigma, batch=64)
        assert abs(share - 1) < 0.02


def test_errors_do_not_depend_on_the_batch(model):
    assert errors(model, images(10), 0.5, batch=3) == pytest.approx(errors(model, images(10), 0.5, batch=10), rel=1e-6)


def test_one_who_knows_the_images_errs_by_nothing(model):
    class Knowing(Model):
        def denoised(self, x, sigma, cond=None):
            return [images(8).float() / 127.5 - 1]

    assert errors(Knowing(model.config, model.backbone.state_dict(), "cpu"), images(8), 1.0) == [0.0]


def test_levels_are_those_of_sampling_from_the_cleanest(model):
    found, levels = sigmas_of(model), model.config.sampling.levels
    assert len(found) == 8 and found == sorted(found)
    assert found[0] == float(levels(torch.tensor(1 / 16, dtype=torch.float64)))


def test_a_network_that_learns_has_nothing_dead(model):
    with listening(model.backbone) as heard:
        errors(model, images(4), 1.0)
    assert heard.layers() and not any(one.dead or one.silent for one in heard.layers())


def test_features_that_were_put_out_are_counted_where_they_are_read(model):
    network = model.backbone
    named = dict(network.named_modules())
    name, layer = next((n, m) for n, m in named.items() if n.endswith("down_proj") and ".ff" in n)
    up = named[name.replace("down_proj", "up_proj")]
    with torch.no_grad():
        up.weight[:5] = 0  # of the half that the gate multiplies: five features are 0 whatever is asked
    with listening(network) as heard:
        errors(model, images(4), 1.0)
    found = {one.name: one for one in heard.layers()}
    assert found[name].dead == 5 and found[name].features == layer.in_features
    assert sum(one.dead for one in found.values()) == 5


def test_a_layer_of_zeros_is_silent(model):
    name, layer = next((n, m) for n, m in model.backbone.named_modules() if n.endswith("down_proj") and ".ff" in n)
    with torch.no_grad():
        layer.weight.zero_()
    with listening(model.backbone) as heard:
        errors(model, images(4), 1.0)
    assert [one.name for one in heard.layers() if one.silent] == [name]


def test_nobody_listens_afterwards(model):
    with listening(model.backbone):
        pass
    assert not any(module._forward_hooks for module in model.backbone.modules())
