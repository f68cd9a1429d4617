"""What a device without float64, as Apple's, is asked for: training and sampling run on one that is made up.

Its tensors lie on the CPU and say that they do not: float64 is refused there, and so are operations on tensors of both.
"""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pixelspace.data.loader import read
from pixelspace.growth.freeze import freeze
from pixelspace.random import Rng
from pixelspace.sampling.solvers import SOLVERS
from pixelspace.training.ema import Average
from pixelspace.training.preview import drawn
from pixelspace.training.state import State, tensors_of
from pixelspace.training.step import train_step
from tests.recipes.test_recipes import made

THERE = torch.device("lazy")  # a type that torch knows, and that has no numbers of its own


class There(Tensor):
    """A tensor of the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held):
        strides, offset = held.stride(), held.storage_offset()
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=strides, storage_offset=offset, dtype=held.dtype, device=THERE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the device's mode")

    def tolist(self):
        return self.cpu().tolist()


COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default}


class Device(TorchDispatchMode):
    """While it is on, the device is there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        mine, others = {}, []

        def bare(one):
            if isinstance(one, There):
                mine[id(one.held)] = one
                return one.held
            if isinstance(one, Tensor) and one.ndim:
                others.append(one)
            return torch.device("cpu") if isinstance(one, torch.device) and one == THERE else one

        bare_args, bare_kwargs = tree_map(bare, (args, kwargs))
        if mine and others and func not in COPIES:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        asked = kwargs.get("device")
        here = not mine if asked is None else torch.device(asked) != THERE

        def back(one):
            if not isinstance(one, Tensor) or id(one) in mine:
                return mine.get(id(one), one)
            if not here and one.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{func}: this device has no float64")
            return one if here else There(one)

        return tree_map(back, func(*bare_args, **bare_kwargs))


class Made(TorchFunctionMode):
    """`torch.tensor` fills memory of its own, which the device has none of."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == THERE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(THERE)
        return func(*args, **kwargs)


class Generator(torch.Generator):
    """The device's numbers are drawn where they lie."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: [THERE.type]
    )
    with Device(), Made():
        yield THERE


def test_the_device_refuses_what_it_has_not_and_computes_the_rest(device):
    x = torch.arange(6.0).reshape(2, 3).to(device).requires_grad_()
    (x @ x.T).sum().backward()
    assert x.grad.device == device and x.grad.cpu().tolist() == [[6.0, 10.0, 14.0]] * 2
    for wrong in (lambda: x.double(), lambda: torch.zeros(1, dtype=torch.float64, device=device)):
        with pytest.raises(TypeError, match="no float64"):
            wrong()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)


STAGES = {
    f"{name}-{stage.name}": stage
    for name in ("hdit-text", "maskdit-imagenet256", "greedy-cc12m-512", "mdm-cc12m")
    for stage in made(f"{name}-debug").stages[:2]
}


def begun(stage, device):
    torch.manual_seed(0)
    network = stage.backbone.build().to(device)
    freeze(network, stage.freeze)
    reader = stage.text.open(device) if stage.text else None
    return State(network, Average(network, stage.ema_device), stage.optimizer.build(network)), reader


@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_training_needs_no_float64_of_the_device(name, device):
    stage = replace(STAGES[name], micro=STAGES[name].batch // 2)
    state, reader = begun(stage, device)
    raw = read(stage.data.source.open(), list(range(stage.batch)), stage.size)
    for _ in range(2):
        assert train_step(state, state.network, stage, raw, Rng(0), reader).read().finite
    tensors = [tensor for part in tensors_of(state).values() for tensor in part.values()]
    assert {tensor.device for tensor in tensors} == {device}


@pytest.mark.parametrize("name", sorted(STAGES)[::2])
def test_drawing_images_needs_no_float64_of_the_device(name, device):
    stage = STAGES[name]
    state, reader = begun(stage, device)
    texts = ["a cat", ""] if reader else []
    with torch.no_grad():
        levels = drawn(
            stage,
            state.network,
            device,
            range(2),
            torch.zeros(2).long(),
            0,
            reader=reader,
            texts=texts,
            every_level=True,
        )
    assert [level.dtype for level in levels] == [torch.uint8] * len(stage.backbone.pyramid)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_no_solver_needs_float64_of_the_device(solver, device):
    stage = made("hdit-imagenet128-debug").stages[0]
    stage = replace(stage, sampling=replace(stage.sampling, solver=solver, steps=4))
    state, _ = begun(stage, device)
    with torch.no_grad():
        (images,) = drawn(stage, state.network, device, range(2), torch.zeros(2).long(), 0)
    assert images.shape == (2, *stage.size, 3)
