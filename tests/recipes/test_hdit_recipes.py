import pytest
import torch

from pixelspace.noise.levels import CosineInterpolated, Karras
from pixelspace.noise.process import EDM
from pixelspace.noise.weighting import SoftMinSNR
from pixelspace.training.ema import EMA
from pixelspace.training.optim import AdamW
from tests.recipes.test_recipes import made

PAPER = {  # parameters, GMAC
    "hdit-imagenet128": (117_003_805, 31.369),
    "hdit-ffhq1024": (85_079_300, 206.076),
    "hdit-imagenet256": (557_416_522, 197.587),
    "hdit-table8-p16-s": (116_388_224, 29.40),
    "hdit-table8-p16-m": (266_990_320, 67.96),
    "hdit-table8-p16-l": (507_245_696, 129.47),
    "hdit-table8-p8-s": (133_885_857, 44.44),
    "hdit-table8-p8-m": (294_432_921, 91.45),
    "hdit-table8-p8-l": (546_861_489, 163.30),
    "hdit-table8-p4-s": (138_694_322, 59.78),
    "hdit-table8-p4-m": (301_836_142, 115.33),
    "hdit-table8-p4-l": (557_416_522, 197.59),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_models_have_its_parameters_and_cost(name):
    stage, *_ = made(name).stages
    with torch.device("meta"):
        network = stage.backbone.build()
    parameters, gmac = PAPER[name]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert stage.backbone.macs(*stage.size) / 1e9 == pytest.approx(gmac, abs=0.006)


@pytest.mark.parametrize("name", ["hdit-imagenet128", "hdit-ffhq1024", "hdit-imagenet256"])
def test_the_paper_s_training_row_is_whole(name):
    stage, *later = made(name).stages
    assert stage.optimizer == AdamW(lr=5e-4, betas=(0.9, 0.95), weight_decay=1e-2, clip=1.0)
    assert stage.ema == EMA(power=0.75, max_decay=0.9999) and stage.precision == "bf16" and stage.batch == 256
    assert stage.objective.process.precond == EDM(0.5) and stage.objective.weighting == SoftMinSNR(4.0)
    size = float(stage.size[0])
    assert stage.objective.levels == CosineInterpolated(size, 32.0, size, 0.5, 1e-3, 1e3)
    faces = name == "hdit-ffhq1024"
    assert stage.sampling.levels == Karras(0.01, 640.0 if faces else 160.0)
    assert (stage.sampling.solver, stage.sampling.steps) == ("dpmpp_3m_sde", 50)
    assert stage.data.augment == (0.12 if faces else 0.0)
    assert stage.objective.drop_rate == (0.0 if faces else 0.1)
    assert [level.dropout for level in stage.backbone.levels][-1] == (0.1 if faces else 0.0)
    steps = {"hdit-imagenet128": 400_000, "hdit-ffhq1024": 1_000_000, "hdit-imagenet256": 2_000_000}
    assert stage.images == steps[name] * 256
    if name == "hdit-imagenet256":
        assert [(s.batch, s.images // s.batch) for s in later] == [(512, 50_000), (1024, 100_000), (2048, 50_000)]
        assert all(s.init.optimizer and s.init.ema == "carry" and s.init.weights == "raw" for s in later)


def test_every_large_recipe_has_a_debug_sibling():
    for name in ("hdit-imagenet128", "hdit-imagenet256", "hdit-ffhq1024"):
        big, small = made(name), made(f"{name}-debug")
        assert len(big.stages) == len(small.stages)
        for a, b in zip(big.stages, small.stages, strict=True):
            assert len(a.backbone.levels) == len(b.backbone.levels) and a.data.augment == b.data.augment
            assert (a.optimizer, a.ema, a.init) == (b.optimizer, b.ema, b.init)
