"""Protocols: all that decides a reported number, as values with names."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pixelspace.config import nearest, value
from pixelspace.data.transforms import Crop
from pixelspace.errors import UserError
from pixelspace.evaluation.i3d import I3D
from pixelspace.evaluation.inception import Inception
from pixelspace.evaluation.lite0 import Lite0
from pixelspace.evaluation.metrics import (
    CMMD,
    CLIPScore,
    DensityCoverage,
    Frechet,
    InceptionScore,
    Kernel,
    Metric,
    PrecisionRecall,
)
from pixelspace.evaluation.pretrained import CLIP, DINOv2
from pixelspace.evaluation.questions.dsg import Dependencies
from pixelspace.random import Rng, permuted

Labels = Literal["balanced", "uniform", "captions", "none"]


@value
class Protocol:
    """How a number is made. `count` images are generated at the model's size and, where `size` says another, resized to
    it; reference images are cut to the same size by `crop`, and of more than `references` so many are drawn. Image i of
    seed s has its label by `labels`: `balanced` gives each class equally often in a mixed order, `uniform` draws it,
    `captions` takes line i of a list. With `truncate` pixels are cut to 8 bits and not rounded, as ADM's sampler does.
    Each of `repeats` has a seed of its own.
    """

    name: str
    about: str
    count: int
    metrics: tuple[Metric, ...]
    size: tuple[int, int] | None = None
    crop: Crop = "center"
    labels: Labels = "balanced"
    truncate: bool = False
    seed: int = 0
    repeats: int = 1
    references: int | None = None

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"Protocol {self.name}: count must be at least 2, found {self.count}")
        if self.references is not None and self.references < 2:
            raise ValueError(f"Protocol {self.name}: references must be at least 2, found {self.references}")
        if self.repeats < 1:
            raise ValueError(f"Protocol {self.name}: repeats must be at least 1, found {self.repeats}")
        if not 0 <= self.seed <= 2**64 - self.repeats:
            raise ValueError(f"Protocol {self.name}: seeds must be from 0 to 2^64 - 1, the first is {self.seed}")
        if not self.metrics:
            raise ValueError(f"Protocol {self.name}: give at least one metric")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError(f"Protocol {self.name}: two metrics of one name among {names}")

    def label_of(self, numbers: range, classes: int, seed: int) -> Tensor:
        """int64 (n,): the classes of images `numbers`; -1 where there are none."""
        if not classes or self.labels in ("none", "captions"):
            return torch.full((len(numbers),), -1)
        if self.labels == "balanced":
            key = Rng(seed).key("label order")
            return torch.tensor([permuted(i % self.count, self.count, key) % classes for i in numbers])
        u = Rng(seed).uniform("label", torch.tensor(list(numbers)))[:, 0]
        return (u * classes).long()


def adm50k() -> Protocol:
    """Dhariwal and Nichol 2021: their evaluator's five numbers against their reference file."""
    seen = Inception("tf1")
    return Protocol(
        name="adm50k",
        about="ImageNet at 128, 256 or 512 px against ADM's reference .npz: FID, sFID, IS, precision, recall",
        count=50_000,
        metrics=(
            Frechet("FID", seen, "inception.pool"),
            Frechet("sFID", seen, "inception.spatial"),
            InceptionScore(seen),
            PrecisionRecall(seen, "inception.pool"),
        ),
        crop="adm",
    )


def edm2() -> Protocol:
    """Karras et al. 2024: FID and FD-DINOv2 of three runs of seeds, of which the paper prints the least."""
    return Protocol(
        name="edm2",
        about="ImageNet against EDM2's reference .pkl: FID and FD-DINOv2, three seeds, mean, std and minimum",
        count=50_000,
        metrics=(
            Frechet("FID", Inception("tf1"), "inception.pool"),
            Frechet("FD-DINOv2", DINOv2(resize="edm2_bicubic"), "dinov2.cls"),
        ),
        crop="adm",
        labels="uniform",
        repeats=3,
    )


def coco30k() -> Protocol:
    """Zero-shot text-to-image on 30,000 captions of MS-COCO's val2014, one an image."""
    cmmd, score = CLIP(), CLIP("openai/clip-vit-large-patch14", 224, "clip_pil")
    return Protocol(
        name="coco30k",
        about="30,000 captions of COCO val2014: FID by two resizes at 256 px, FD-DINOv2, CMMD, CLIPScore",
        count=30_000,
        metrics=(
            Frechet("FID (clean)", Inception("clean"), "inception.pool"),
            Frechet("FID (tf1)", Inception("tf1"), "inception.pool"),
            Frechet("FD-DINOv2", DINOv2(), "dinov2.cls"),
            CMMD(cmmd, cmmd.output),
            CLIPScore(score, score.output),
        ),
        size=(256, 256),
        labels="captions",
    )


def captions10k() -> Protocol:
    """Text and images together while training: on the held-out split, as Matryoshka diffusion was watched (Gu et al.
    2024), whose count and networks are not public."""
    score = CLIP("openai/clip-vit-large-patch14", 224, "clip_pil")
    return Protocol(
        name="captions10k",
        about="10,000 captions, while training those held out: FID and CLIPScore at the size that is made",
        count=10_000,
        metrics=(Frechet("FID", Inception("clean"), "inception.pool"), CLIPScore(score, score.output)),
        labels="captions",
    )


def ffhq50k() -> Protocol:
    """Crowson et al. 2024: FFHQ without classes."""
    dino = DINOv2()
    return Protocol(
        name="ffhq50k",
        about="FFHQ, 50,000 images: FID, and Fréchet and kernel distance on DINOv2",
        count=50_000,
        metrics=(
            Frechet("FID", Inception("clean"), "inception.pool"),
            Frechet("FD-DINOv2", dino, "dinov2.cls"),
            Kernel("KD-DINOv2", dino, "dinov2.cls"),
        ),
        labels="none",
    )


def clean50k() -> Protocol:
    """Parmar et al. 2022: clean-fid's FID and KID, for any images."""
    seen = Inception("clean")
    return Protocol(
        name="clean50k",
        about="any images, 50,000: FID and KID as clean-fid makes them",
        count=50_000,
        metrics=(Frechet("FID", seen, "inception.pool"), Kernel("KID", seen, "inception.pool")),
    )


def _fvd(name: str, what: str, labels: Labels) -> Protocol:
    return Protocol(
        name=name,
        about=f"{what}: FVD of 2,048 clips of 16 frames by I3D",
        count=2048,
        metrics=(Frechet("FVD", I3D(), "i3d.logits"),),
        labels=labels,
    )


def ucf_fvd() -> Protocol:
    """Unterthiner et al. 2018 on UCF-101."""
    return _fvd("ucf-fvd", "UCF-101", "balanced")


def webvid_fvd() -> Protocol:
    """Unterthiner et al. 2018 on captions of WebVid."""
    return _fvd("webvid-fvd", "WebVid", "captions")


def quick() -> Protocol:
    """For a look while training and for machines without a GPU: features of a small network that a package carries."""
    seen = Lite0()
    return Protocol(
        name="quick",
        about="1,000 images, offline: FD, KD, precision, recall, density, coverage on EfficientNet-Lite0",
        count=1000,
        metrics=(
            Frechet("FD-Lite0", seen, "lite0.pool"),
            Kernel("KD-Lite0", seen, "lite0.pool", subsets=50, size=500),
            PrecisionRecall(seen, "lite0.pool"),
            DensityCoverage(seen, "lite0.pool"),
        ),
        references=10_000,  # neighbours take the square of them
    )


PROTOCOLS: dict[str, Callable[[], Protocol]] = {
    "adm50k": adm50k,
    "edm2": edm2,
    "coco30k": coco30k,
    "captions10k": captions10k,
    "ffhq50k": ffhq50k,
    "clean50k": clean50k,
    "ucf-fvd": ucf_fvd,
    "webvid-fvd": webvid_fvd,
    "quick": quick,
}


@value
class Questions:
    """A protocol that asks questions about images. `dsg` scores the answers to question graphs, `counting` those to how
    many things there are; which network answered is part of the number."""

    name: str
    about: str
    kind: Literal["dsg", "counting"]
    dependencies: Dependencies = "direct"
    seed: int = 0  # of the bootstrap


QUESTIONS: dict[str, Callable[[], Questions]] = {
    "dsg1k": lambda: Questions(
        "dsg1k", "the 1,060 prompts of DSG-1k with their released question graphs, answered by any network", "dsg"
    ),
    "counting": lambda: Questions(
        "counting", "Gecko's and GeckoNum's prompts of exact numbers, counted by a network that answers", "counting"
    ),
}


def of_name(name: str) -> Protocol | Questions:
    """The protocol called `name`.

    Raises:
        UserError: there is none.
    """
    known: dict[str, Callable[[], Protocol | Questions]] = {**PROTOCOLS, **QUESTIONS}
    if name not in known:
        raise UserError(f"protocol: no {name!r}; {nearest(name, known)}")
    return known[name]()


def clips(protocol: Protocol) -> bool:
    """Whether it judges clips, not images."""
    return any(isinstance(metric.extractor, I3D) for metric in protocol.metrics)


def only(protocol: Protocol, names: tuple[str, ...]) -> tuple[Metric, ...]:
    """The metrics of a protocol that are called `names`, or give numbers of these names, in the protocol's order; all
    of them for none.

    Raises:
        UserError: it has none of that name.
    """
    called = [{metric.name, *metric.name.split(", ")} for metric in protocol.metrics]
    for name in names:
        if not any(name in own for own in called):
            has = ", ".join(metric.name for metric in protocol.metrics)
            raise UserError(f"metric: {protocol.name} has no {name!r}; it has: {has}")
    chosen = (metric for metric, own in zip(protocol.metrics, called, strict=True) if own & set(names))
    return tuple(chosen) or protocol.metrics
