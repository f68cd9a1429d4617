"""Predictions of memory against what a real step holds: autograd's saved tensors, gradients, moments and average."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from pixelspace.data.loader import read
from pixelspace.growth.freeze import freeze
from pixelspace.random import Rng
from pixelspace.training.ema import Average
from pixelspace.training.memory import Memory, activation_bytes, predicted
from pixelspace.training.preview import autocast
from pixelspace.training.state import State
from pixelspace.training.step import train_step
from tests.recipes.test_recipes import made

PARTS = ("weights", "gradients", "moments", "average", "activations")


class Saved:
    """Bytes that autograd holds now, and at most so far: a storage counts once, while anything in it is held."""

    def __init__(self, besides):
        self.besides, self.holders, self.now, self.most = besides, {}, 0, 0

    def pack(self, tensor):
        return Holder(self, tensor)

    def take(self, storage):
        self.holders[key] = self.holders.get(key := storage.data_ptr(), 0) + 1
        if self.holders[key] == 1 and key not in self.besides:
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def drop(self, storage):
        self.holders[key := storage.data_ptr()] -= 1
        if not self.holders[key] and key not in self.besides:
            self.now -= storage.nbytes()


class Holder:
    def __init__(self, saved, tensor):
        self.saved, self.tensor = saved, tensor
        saved.take(tensor.untyped_storage())

    def __del__(self):
        self.saved.drop(self.tensor.untyped_storage())


def nbytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


@cache
def opened(source):
    return source.open()


def held(stage) -> Memory:
    """What one real step holds, of captions as long as the encoder reads them."""
    rng = Rng(0)
    torch.manual_seed(0)
    network = stage.backbone.build()
    network.checkpointing = stage.checkpointing
    freeze(network, stage.freeze)
    state = State(network, Average(network), stage.optimizer.build(network))
    raw = read(opened(stage.data.source), list(range(stage.batch)), stage.size)
    raw = replace(raw, texts=tuple("a cat and a dog " * 10 for _ in raw.texts))
    reader = stage.text.open(torch.device("cpu")) if stage.text else None
    gradients = []

    def note(optimizer, *given):
        gradients.append(nbytes(p.grad for p in network.parameters() if p.grad is not None))

    def forward(x, c_noise, cond, **keep):
        with autocast(stage, torch.device("cpu")):
            return network(x, c_noise, cond, **keep)

    state.optimizer.register_step_pre_hook(note)
    saved = Saved({parameter.untyped_storage().data_ptr() for parameter in network.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda holder: holder.tensor):
        assert train_step(state, forward, stage, raw, rng, reader).read().finite
    assert saved.now == 0
    own = {tensor.data_ptr() for tensor in network.parameters()}
    return Memory(
        nbytes(network.parameters()) + nbytes(network.buffers()),
        gradients[0],
        nbytes(tensor for moments in state.optimizer.state.values() for tensor in moments.values()),
        nbytes(tensor for tensor in state.average.tensors.values() if tensor.data_ptr() not in own),
        saved.most,
    )


def close(stage) -> bool:
    """Whether all parts are what is held, activations within 2 %, the rest within 0.1 %."""
    expected, found = held(stage), predicted(stage)
    for part in PARTS:
        real, told = getattr(expected, part), getattr(found, part)
        assert abs(told - real) <= (0.02 if part == "activations" else 0.001) * real, (stage.name, part, told, real)
    return abs(found.total - expected.total) <= 0.02 * expected.total


DEBUG = ("hdit-text", "maskdit-imagenet256", "greedy-cc12m-512", "mdm-cc12m", "mdm-webvid", "uvit-pyramid-256")
DEMOS = ("hdit-demo", "maskdit-emoji", "greedy-emoji", "mdm-emoji")
STAGES = {f"{name}-{stage.name}": stage for name in DEBUG for stage in made(f"{name}-debug").stages} | {
    f"{name}-{stage.name}": replace(stage, batch=2, images=2, micro=0) for name in DEMOS for stage in made(name).stages
}
NETWORKS = ("hdit-text-train", "maskdit-imagenet256-masked", "greedy-cc12m-512-grow-512", "mdm-webvid-clips-64")


@pytest.mark.parametrize("name", [name for name in STAGES if name not in ("mdm-webvid-clips-256", "mdm-emoji-mdm-64")])
def test_a_step_holds_what_is_predicted(name):
    assert close(STAGES[name])


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"precision": "bf16"}], ids=["again", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_computed_again_or_in_half_precision_holds_what_is_predicted(name, changes):
    assert close(replace(STAGES[name], **changes))


@pytest.mark.parametrize("name", NETWORKS[1:3])
def test_accumulated_gradients_hold_the_activations_of_one_part_alone(name):
    """Gradients of later parts are added in place: at no time is there more than of one part and one gradient."""
    stage = replace(STAGES[name], batch=4, images=4)
    whole, parts, one = held(stage), held(replace(stage, micro=2)), held(replace(stage, batch=2, images=2))
    assert parts.activations == one.activations < whole.activations
    assert parts.gradients == one.gradients == whole.gradients
    assert close(replace(stage, micro=2))


def test_an_average_on_the_host_takes_no_memory_of_the_device():
    stage = STAGES["hdit-text-train"]
    here, away = predicted(stage), predicted(replace(stage, ema_device="cpu"))
    assert away.average == 0 and replace(away, average=here.average) == here


def test_of_a_pyramid_in_parts_the_first_and_finest_is_predicted():
    """The first images of a batch are run on all levels, later ones on coarser ones alone."""
    stage = made("mdm-cc12m-debug").stages[1]
    mixed = replace(stage, objective=replace(stage.objective, mixed=(1, 1)), batch=8, images=8, micro=4)
    assert close(mixed) and activation_bytes(mixed, 4) > activation_bytes(replace(mixed, batch=4, images=4), 4)


def test_a_prediction_leaves_a_network_as_it_was():
    stage = replace(STAGES["greedy-cc12m-512-grow-512"], checkpointing=True)
    with torch.device("meta"):
        network = stage.backbone.build()
    before = {name: (type(one), one.device, one.requires_grad) for name, one in network.named_parameters()}
    assert activation_bytes(stage, 2, network=network) == activation_bytes(stage, 2, network=network)
    assert {name: (type(one), one.device, one.requires_grad) for name, one in network.named_parameters()} == before
    assert not any("forward" in vars(unit) for unit in network.units())
