"""Each metric is its pure function of the same features, with details that say how it was made."""

import pytest
import torch

from pixelspace.evaluation.frechet import frechet_distance
from pixelspace.evaluation.inception import Inception
from pixelspace.evaluation.intervals import bootstrap
from pixelspace.evaluation.kernel import cmmd, kid
from pixelspace.evaluation.metrics import (
    CMMD,
    CLIPScore,
    DensityCoverage,
    Frechet,
    InceptionScore,
    Kernel,
    PrecisionRecall,
    Vendi,
)
from pixelspace.evaluation.neighbours import manifolds
from pixelspace.evaluation.pretrained import CLIP
from pixelspace.evaluation.scores import adm_splits, cosines, inception_score, vendi_score
from pixelspace.evaluation.stats import moments
from pixelspace.types import Number

NET, CLIP_NET = Inception("tf1"), CLIP("tiny/clip", 28, width=12)
POOL, LOGITS = "inception.pool", "inception.logits"


class Rows:
    """Features by key, in memory."""

    def __init__(self, count: int, seed: int, shift: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(width):
            return torch.randn(count, width, generator=generator) + shift

        self.features = {NET.key(POOL): draw(12), NET.key(LOGITS): 3 * draw(7)}
        self.features |= {CLIP_NET.key("clip.image"): draw(12), CLIP_NET.key("clip.text"): draw(12)}

    def rows(self, key):
        return self.features[key]

    def moments(self, key):
        return moments([self.features[key]])


MADE, KNOWN = Rows(60, 1), Rows(80, 2, shift=0.4)
X, Y = MADE.rows(NET.key(POOL)), KNOWN.rows(NET.key(POOL))
IMAGES, TEXTS = MADE.rows(CLIP_NET.key("clip.image")), MADE.rows(CLIP_NET.key("clip.text"))


def test_the_frechet_distance_is_that_of_the_moments():
    found = Frechet("FID", NET, POOL).numbers(MADE, KNOWN, 0)
    assert found == (Number("FID", frechet_distance(moments([X]), moments([Y])), True, {"width": 12}),)


@pytest.mark.parametrize(("size", "taken"), [(20, 20), (1000, 60)])
def test_the_kernel_distance_is_kid_of_subsets_no_larger_than_a_set(size, taken):
    (found,) = Kernel("KD", NET, POOL, subsets=5, size=size).numbers(MADE, KNOWN, seed=3)
    expected = kid(X, Y, subsets=5, size=taken, seed=3)
    details = {"std over subsets": expected.std, "subsets": 5, "subset size": taken, "seed": 3}
    assert found == Number("KD", expected.mean, True, details)


def test_the_seed_draws_the_subsets():
    metric = Kernel("KD", NET, POOL, subsets=3, size=20)
    values = [metric.numbers(MADE, KNOWN, seed)[0].value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_cmmd_is_that_of_the_embeddings():
    (found,) = CMMD(CLIP_NET, CLIP_NET.output).numbers(MADE, KNOWN, 0)
    assert found == Number("CMMD", cmmd(IMAGES, KNOWN.rows(CLIP_NET.key("clip.image"))))


@pytest.mark.parametrize("arithmetic", ["float64", "adm"])
def test_precision_and_recall_are_of_the_manifolds(arithmetic):
    found = PrecisionRecall(NET, POOL, arithmetic=arithmetic).numbers(MADE, KNOWN, 0)
    expected = manifolds(X, Y, 3, arithmetic=arithmetic)
    details = {"k": 3, "distances": arithmetic, "reference images": 80}
    assert found == (
        Number("precision", expected.precision, False, details),
        Number("recall", expected.recall, False, details),
    )
    assert expected.precision != expected.recall, "which one is which can be told"


def test_density_and_coverage_are_of_the_manifolds():
    found = DensityCoverage(NET, POOL, k=4).numbers(MADE, KNOWN, 0)
    expected = manifolds(X, Y, 4)
    details = {"k": 4, "reference images": 80}
    assert found == (
        Number("density", expected.density, False, details),
        Number("coverage", expected.coverage, False, details),
    )


@pytest.mark.parametrize("split", [25, 5000])
def test_the_inception_score_has_adms_splits(split):
    (found,) = InceptionScore(NET, split=split).numbers(MADE, MADE, 0)
    expected = inception_score(MADE.rows(NET.key(LOGITS)), adm_splits(60, split))
    assert found == Number("IS", expected.mean, False, {"std over splits": expected.std, "split": split})


def test_clipscore_comes_in_both_conventions_with_intervals():
    found = CLIPScore(CLIP_NET, CLIP_NET.output).numbers(MADE, MADE, seed=5)
    cos = cosines(IMAGES, TEXTS)
    for number, name, values in zip(
        found, ("2.5 max(cos, 0)", "100 cos"), (2.5 * cos.clamp(min=0), 100 * cos), strict=True
    ):
        interval = bootstrap(values, seed=5)
        details = {"95% from": interval.low, "95% to": interval.high, "mean of": name}
        assert number == Number(f"CLIPScore ({name})", float(values.mean()), False, details)
        assert interval.low < number.value < interval.high
    assert (cos < 0).any(), "the two are told apart"


def test_vendi_is_that_of_the_features():
    (found,) = Vendi(NET, POOL).numbers(MADE, MADE, 0)
    assert found == Number("Vendi", vendi_score(X), False)


@pytest.mark.parametrize(
    ("metric", "wants"),
    [
        (Frechet("FID", NET, POOL), "moments"),
        *((metric, "rows") for metric in (Kernel("KD", NET, POOL), CMMD(CLIP_NET, "clip.image"))),
        *((metric, "rows") for metric in (PrecisionRecall(NET, POOL), DensityCoverage(NET, POOL))),
        *((metric, "nothing") for metric in (InceptionScore(NET), CLIPScore(CLIP_NET, "clip.image"), Vendi(NET, POOL))),
    ],
    ids=lambda item: item if isinstance(item, str) else item.name,
)
def test_a_metric_reads_what_it_says_and_nothing_else(metric, wants):
    class Only:
        """Refuses what was not announced."""

        def __init__(self, of, allowed):
            self.of, self.allowed = of, allowed

        def rows(self, key):
            assert "rows" in self.allowed
            return self.of.rows(key)

        def moments(self, key):
            assert "moments" in self.allowed
            return self.of.moments(key)

    assert metric.wants == wants
    numbers = metric.numbers(MADE, Only(KNOWN, {wants}), 0)
    assert numbers == metric.numbers(MADE, KNOWN, 0)
    assert metric.key == metric.extractor.key(metric.output)


def test_where_a_subset_would_be_all_rows_there_is_one_distance_and_no_deviation():
    known = Rows(60, 3)
    (found,) = Kernel("KD", NET, POOL, subsets=5, size=1000).numbers(MADE, known, seed=3)
    assert found.value == pytest.approx(kid(X, known.rows(NET.key(POOL)), subsets=1, size=60, seed=0).mean, rel=1e-12)
    assert found.details == {"all rows": 60}
