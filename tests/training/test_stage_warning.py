"""Large patches: noise that is predicted must fit through the entry (Li and He 2025, Table 2)."""

from dataclasses import replace

import pytest

from pixelspace.backbones.hdit import Global, HDiTConfig, Level
from pixelspace.backbones.maskdit import MaskDiTConfig
from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig, UViTConfig
from pixelspace.noise.process import EDM, VPV, X0, Process, RectifiedFlow, VPEps

CORE = CoreConfig(64, 1, 16, (2, 2), cond_width=16)


def stage_of(tiny, backbone, precond, side):
    """The tiny stage with another network and another target."""
    (stage,) = tiny.stages
    objective = replace(stage.objective, process=Process(precond), drop_rate=0.0)
    return replace(stage, backbone=backbone, objective=objective, size=(side, side))


LARGE = {
    "shallow-uvit": (ShallowUViTConfig(CORE, stride=16), 32, "768 values of the image become 64 numbers"),
    "uvit": (UViTConfig(CORE, (32,), patch=8, blocks=1), 32, "192 values of the image become 32 numbers"),
    "hdit": (HDiTConfig(levels=(Level(64, 1, Global(16)),), patch=(8, 16)), 32, "384 values of the image become 64"),
    "maskdit": (
        MaskDiTConfig(48, 1, 3, (32, 32), patch=16, channels=3, decoder=None),
        32,
        "768 values of the image become 48",
    ),
    "as-wide": (UViTConfig(CORE, (12,), patch=2, blocks=1), 8, "12 values of the image become 12 numbers"),
}
SMALL = {
    "shallow-uvit": (ShallowUViTConfig(CORE, stride=4), 8),
    "wide-entry": (ShallowUViTConfig(CORE, stride=16, width=769), 32),
    "uvit-2": (UViTConfig(CORE, (16,), patch=2, blocks=1), 8),
    "uvit-4": (UViTConfig(CORE, (64,), patch=4, blocks=1), 16),
    "hdit": (HDiTConfig(levels=(Level(64, 1, Global(16)),), patch=(4, 4)), 32),
    "maskdit": (MaskDiTConfig(48, 1, 3, (16, 16), patch=2, channels=3, decoder=None), 16),
}


@pytest.mark.parametrize("precond", [VPV(), VPEps(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize(("backbone", "side", "values"), LARGE.values(), ids=LARGE)
def test_large_patches_warn_where_noise_is_predicted(tiny, backbone, side, values, precond):
    (warning,) = stage_of(tiny, backbone, precond, side).warnings
    assert warning.startswith(f"stage 'train': {values}") and "\n" not in warning
    assert f"{type(precond).__name__} predicts" in warning and "predict the image (X0)" in warning


@pytest.mark.parametrize("precond", [X0(), EDM()], ids=repr)
@pytest.mark.parametrize(("backbone", "side", "values"), LARGE.values(), ids=LARGE)
def test_large_patches_do_not_warn_where_not_all_of_the_noise_is_predicted(tiny, backbone, side, values, precond):
    assert stage_of(tiny, backbone, precond, side).warnings == []


@pytest.mark.parametrize("precond", [VPV(), VPEps(), X0()], ids=repr)
@pytest.mark.parametrize(("backbone", "side"), SMALL.values(), ids=SMALL)
def test_small_patches_do_not_warn(tiny, backbone, side, precond):
    assert stage_of(tiny, backbone, precond, side).warnings == []
