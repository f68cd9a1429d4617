"""Scores of one set of images: Inception Score, CLIPScore in its conventions, Vendi score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelspace.errors import DataError
from pixelspace.evaluation.rows import check_pair, check_rows, unit_rows

CLIPSCORE_WEIGHT = 2.5


@dataclass(frozen=True)
class SplitScore:
    """Mean and standard deviation over splits."""

    mean: float
    std: float


def adm_splits(count: int, size: int = 5000) -> list[slice]:
    """Splits of `size` rows, and the rest as one more: of ADM's evaluator."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def proportional_splits(count: int, splits: int = 10) -> list[slice]:
    """`splits` parts as equal as can be: of torch-fidelity and StyleGAN."""
    return [slice(i * count // splits, (i + 1) * count // splits) for i in range(splits)]


def inception_score(
    logits: Tensor, splits: Sequence[slice], *, order: Tensor | None = None, correction: int = 0
) -> SplitScore:
    """exp E KL(p(y|x) ‖ p(y)) of logits (n, classes), over splits (Salimans et al. 2016).

    What a published number means hangs on all of these: ADM takes logits without the bias and splits of 5000 in the
    order given, torch-fidelity ten splits of rows shuffled to `order`; torchmetrics has `correction` 1. Images in order
    of their classes give far too low a score unless shuffled.

    Raises:
        DataError: logits that are not finite rows, an `order` that is no permutation, an empty split or too few.
    """
    check_rows(logits, "logits")
    if order is not None:
        if not torch.equal(order.sort().values.long(), torch.arange(len(logits), device=order.device)):
            raise DataError(f"Inception Score: the order is not a permutation of the {len(logits)} rows")
        logits = logits[order.long()]
    if len(splits) <= correction or any(not len(logits[split]) for split in splits):
        sizes = [len(logits[split]) for split in splits]
        raise DataError(f"Inception Score: needs more than {correction} splits and none empty, found sizes {sizes}")
    values = []
    for split in splits:
        log_p = logits[split].double().log_softmax(1)
        log_marginal = log_p.logsumexp(0) - torch.tensor(float(len(log_p)), dtype=torch.float64).log()
        values.append((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())
    found = torch.stack(values)
    return SplitScore(float(found.mean()), float(found.std(correction=correction)))


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """(n,) cosine of each image's embedding with that of its text, both (n, D) of any length: averaged, and mostly
    times 100, it is what papers on text to image call CLIP score. Which CLIP and which prefix change the number.

    Raises:
        DataError: other shapes, a number that is not finite, or a row of zeros.
    """
    names = ("embeddings of images", "embeddings of texts")
    check_pair(images, texts, names=names)
    if len(images) != len(texts):
        raise DataError(f"CLIPScore: one text an image is needed, found {len(images)} images and {len(texts)} texts")
    return (unit_rows(images, names[0]) * unit_rows(texts, names[1])).sum(1)


def clipscore(images: Tensor, texts: Tensor) -> Tensor:
    """(n,) CLIP-S of Hessel et al. 2021, 2.5 max(cosine, 0), for embeddings (n, D); there of ViT-B/32 and of texts
    behind `A photo depicts`.

    Raises:
        DataError: as `cosines`.
    """
    return CLIPSCORE_WEIGHT * cosines(images, texts).clamp(min=0)


def ref_clipscore(images: Tensor, texts: Tensor, references: Tensor, *, clipped: bool = True) -> Tensor:
    """(n,) RefCLIPScore (Hessel et al. 2021): the harmonic mean of CLIP-S and of the text's best cosine with references
    (n, R, D); 0 where CLIP-S is. `clipped`, a negative best cosine counts as 0, as in the paper; else as in its code.

    Raises:
        DataError: as `cosines`.
    """
    score = clipscore(images, texts)
    if references.ndim != 3 or references.shape[::2] != texts.shape or not references.shape[1]:
        expected = f"({len(texts)}, R, {texts.shape[1]})"
        raise DataError(f"embeddings of references: expected {expected}, found the shape {tuple(references.shape)}")
    check_rows(references.flatten(1), "embeddings of references")
    units = unit_rows(references, "embeddings of references")
    best = torch.einsum("nrd,nd->nr", units, unit_rows(texts, "embeddings of texts")).amax(1)
    best = best.clamp(min=0) if clipped else best
    return torch.where(score > 0, 2 * score * best / (score + best), 0)


def vendi_score(rows: Tensor) -> float:
    """Effective number of different rows of (n, D), from 1 to n, by the cosine of two (Friedman & Dieng 2023): the
    exponential of the entropy of the eigenvalues of their matrix over n.

    Raises:
        DataError: other shapes, a number that is not finite, or a row of zeros.
    """
    check_rows(rows, "features")
    units = unit_rows(rows, "features")
    count, width = units.shape
    return vendi_of((units @ units.T if count < width else units.T @ units) / count)


def vendi_of(matrix: Tensor) -> float:
    """Vendi score of a similarity's matrix (n, n) over n, or of any with the same non-zero eigenvalues."""
    values = torch.linalg.eigvalsh(matrix.double()).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())
