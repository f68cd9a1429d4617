"""Metrics as values: which features they read, what they need of a reference, and the numbers they make."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from pixelspace.config import value
from pixelspace.evaluation.features import Extractor
from pixelspace.evaluation.frechet import frechet_distance
from pixelspace.evaluation.intervals import bootstrap
from pixelspace.evaluation.kernel import cmmd, kid, polynomial_mmd
from pixelspace.evaluation.neighbours import Arithmetic, manifolds
from pixelspace.evaluation.scores import adm_splits, cosines, inception_score, vendi_score
from pixelspace.evaluation.stats import Moments
from pixelspace.types import Number

Wants = Literal["moments", "rows", "nothing"]


class Seen(Protocol):
    """Features of a set of images, by `Extractor.key`."""

    def rows(self, key: str) -> Tensor:
        """float32 (count, D)."""
        ...

    def moments(self, key: str) -> Moments:
        """Their mean and covariance."""
        ...


class Metric(ABC):
    """A number, or some, made of the features of generated images and mostly of a reference's.

    It reads `output` of `extractor`, and `wants` of a reference mean and covariance, all features, or nothing.
    """

    name: str
    extractor: Extractor
    output: str
    wants: ClassVar[Wants] = "moments"
    reads_captions: ClassVar[bool] = False

    @property
    def key(self) -> str:
        """Of the features it reads."""
        return self.extractor.key(self.output)

    @abstractmethod
    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        """Its numbers; `seed` decides what is drawn by chance. What wants nothing is handed `made` twice."""


@value
class Frechet(Metric):
    """The Fréchet distance of Gaussians fitted to features (Heusel et al. 2017), covariances with divisor n - 1."""

    name: str
    extractor: Extractor
    output: str

    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        a, b = made.moments(self.key), known.moments(self.key)
        return (Number(self.name, frechet_distance(a, b), details={"width": len(a.mean)}),)


@value
class Kernel(Metric):
    """The unbiased squared MMD by the kernel (x y / D + 1)^3, mean over subsets (Bińkowski et al. 2018)."""

    name: str
    extractor: Extractor
    output: str
    subsets: int = 100
    size: int = 1000
    wants: ClassVar[Wants] = "rows"

    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        x, y = made.rows(self.key), known.rows(self.key)
        size = min(self.size, len(x), len(y))
        if size == max(len(x), len(y)):  # every subset would be all of them
            return (Number(self.name, polynomial_mmd(x, y), details={"all rows": size}),)
        found = kid(x, y, subsets=self.subsets, size=size, seed=seed)
        details = {"std over subsets": found.std, "subsets": self.subsets, "subset size": size, "seed": seed}
        return (Number(self.name, found.mean, details=details),)


@value
class CMMD(Metric):
    """1000 times the biased squared MMD of normalised embeddings by a Gaussian kernel of width 10 (Jayasumana et al.
    2024)."""

    extractor: Extractor
    output: str
    name: str = "CMMD"
    wants: ClassVar[Wants] = "rows"

    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        return (Number(self.name, cmmd(made.rows(self.key), known.rows(self.key))),)


@value
class PrecisionRecall(Metric):
    """Shares of generated images in the reference's k-nearest-neighbour balls, and the reverse (Kynkäänniemi et al.
    2019). With `adm` distances are computed in float16, as ADM's evaluator does."""

    extractor: Extractor
    output: str
    k: int = 3
    arithmetic: Arithmetic = "float64"
    name: str = "precision, recall"
    wants: ClassVar[Wants] = "rows"

    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        x, y = made.rows(self.key), known.rows(self.key)
        found = manifolds(x, y, self.k, arithmetic=self.arithmetic)
        details = {"k": self.k, "distances": self.arithmetic, "reference images": len(y)}
        return Number("precision", found.precision, False, details), Number("recall", found.recall, False, details)


@value
class DensityCoverage(Metric):
    """How many reference balls hold a generated image, and the share of reference images near one (Naeem et al.
    2020)."""

    extractor: Extractor
    output: str
    k: int = 5
    name: str = "density, coverage"
    wants: ClassVar[Wants] = "rows"

    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        x, y = made.rows(self.key), known.rows(self.key)
        found = manifolds(x, y, self.k)
        details = {"k": self.k, "reference images": len(y)}
        return Number("density", found.density, False, details), Number("coverage", found.coverage, False, details)


@value
class InceptionScore(Metric):
    """exp of the mean divergence of p(y|x) from p(y), over consecutive splits of `split` images, the last perhaps
    shorter, as ADM's evaluator has it (Salimans et al. 2016)."""

    extractor: Extractor
    output: str = "inception.logits"
    split: int = 5000
    name: str = "IS"
    wants: ClassVar[Wants] = "nothing"

    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        logits = made.rows(self.key)
        found = inception_score(logits, adm_splits(len(logits), self.split))
        return (Number(self.name, found.mean, False, {"std over splits": found.std, "split": self.split}),)


@value
class CLIPScore(Metric):
    """How well images match their captions: the mean of 2.5 max(cos, 0) as in the paper (Hessel et al. 2021), and of
    100 cos as text-to-image papers print it, each with a bootstrap interval over prompts."""

    extractor: Extractor
    output: str
    name: str = "CLIPScore"
    wants: ClassVar[Wants] = "nothing"
    reads_captions: ClassVar[bool] = True

    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        cos = cosines(made.rows(self.key), made.rows(self.extractor.key(self.extractor.text_output)))
        found = []
        for convention, values in (("2.5 max(cos, 0)", 2.5 * cos.clamp(min=0)), ("100 cos", 100 * cos)):
            interval = bootstrap(values, seed=seed)
            details = {"95% from": interval.low, "95% to": interval.high, "mean of": convention}
            found.append(Number(f"{self.name} ({convention})", interval.value, False, details))
        return tuple(found)


@value
class Vendi(Metric):
    """How many different images there are in effect: the exponential of the entropy of the cosine kernel's spectrum
    (Friedman and Dieng 2023)."""

    extractor: Extractor
    output: str
    name: str = "Vendi"
    wants: ClassVar[Wants] = "nothing"

    def numbers(self, made: Seen, known: Seen, seed: int) -> tuple[Number, ...]:
        return (Number(self.name, vendi_score(made.rows(self.key)), False),)
