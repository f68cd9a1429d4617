"""The few types that every floor shares, and the legend of shape letters.

B batch, C channels, H W pixels, h w tokens, L tokens in a row, D features, N heads, E features of a head.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

Cond = Mapping[str, Tensor]
"""What an image is conditioned on. A backbone says which keys it takes.

`label` int (B,) with -1 for none, or float rows (B, classes) with a zero row for none; `text` (B, L, D) with
`text_mask` (B, L) bool, true where there is a token, and `pooled` (B, P); `size` (B, 2), height and width before an
image was cut, and `corner` (B, 2), where; `scale` (B,), the smaller side before, infinite where it is not known; `aug`
(B, 9); `mapping` (B, K).
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Training samples in model space: pixels in [-1, 1], x (B, C, H, W) float32; a clip is one image, whose tiles are
    its frames row by row.

    `pos` (B,) int64 holds each sample's global position in the run: the key of all its randomness. `null` has a row
    (1, ...) for each condition but the label that a sample may lose: what stands there then.
    """

    x: Tensor
    cond: Cond
    pos: Tensor
    null: Cond = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draw:
    """All the dice of one batch: sigma (B,), noise shaped as x, which samples (B,) lose their condition, and which
    patches a network is shown: `keep` (B, L_keep) int64, numbered row by row.

    For a pyramid, sigma is that of the coarsest level, the noise of all levels stands in one row (B, N), and `rows` are
    how many samples, the first ones, each level is run on (None: all)."""

    sigma: Tensor
    noise: Tensor
    drop: Tensor | None = None
    keep: Tensor | None = None
    rows: tuple[int, ...] | None = None


class ParamGroup(NamedTuple):
    """Parameters by name that share a learning-rate factor and whether weight decay applies."""

    names: tuple[str, ...]
    lr_factor: float
    decay: bool


class Shared(NamedTuple):
    """What all levels of a pyramid learn of text and class from the innermost network: what is added to the time's
    embedding (B, E), the text's tokens (B, L, D) and their additive mask (B, 1, 1, L), None for none; and whether
    blocks are recomputed in the backward pass."""

    emb: Tensor | None = None
    text: Tensor | None = None
    mask: Tensor | None = None
    again: bool = False

    def first(self, count: int) -> "Shared":
        """Of the first `count` samples."""
        rows = (None if one is None else one[:count] for one in self[:3])
        return Shared(*rows, again=self.again)


@dataclass(frozen=True, slots=True)
class Inside:
    """How a network fits inside a finer level of a pyramid: `width` channels of features, a place for every `patch` x
    `patch` pixels, to which those of the finer level are added and of which it is given some back; for all levels an
    embedding of text and class `emb` wide (0: none) and text `text` wide (0: none). A side of its image must be at
    least a multiple of `multiple`."""

    width: int
    patch: int = 1
    emb: int = 0
    text: int = 0
    multiple: int = 1


class BackboneConfig(ABC):
    """A network as a value. What it builds is called as (x (B, C, H, W), c_noise (B,), cond) and returns x's shape; it
    has `takes` (the keys of cond it reads), `units()`, `param_groups()` and the switch `checkpointing`. One that can
    do without some patches also takes `keep` (B, L_keep), those it is shown, and says their size in `keep_patch`."""

    channels: int
    num_classes: int

    @property
    def text_widths(self) -> tuple[int, int] | None:
        """Width of the text tokens and of the pooled text that it reads; None: it reads no text."""
        return None

    @property
    def pyramid(self) -> tuple[int, ...]:
        """By how much smaller than the image, a side, each level is that it works on, the finest first. One of several
        levels takes and gives a list of them."""
        return (1,)

    @property
    def tiles(self) -> int:
        """How many frames of a clip a side of the image has, row by row; 1: it is one image."""
        return 1

    @property
    def inside(self) -> Inside | None:
        """How it fits inside a pyramid; None: it cannot be there. What it builds then also has `needs`, keys of cond
        that must be given, `shared(cond, again)`, a `Shared`, and `nested(xs, c_noise, cond, shared, features)`: as a
        level there, its images, the finest first, and its features (B, D, h, w) that the first came of, with `features`
        of the finer level (None: none) added."""
        return None

    @property
    def keep_patch(self) -> tuple[int, int] | None:
        """Height and width of the patches that `keep` numbers row by row; None: all of x is needed."""
        return None

    @property
    def positions(self) -> Mapping[str, tuple[int, int]]:
        """Learnt or fixed tables of positions by name, each with its grid (down, across): rows in its next-to-last axes
        are the grid's, row by row, after those that have no place on it."""
        return {}

    @property
    @abstractmethod
    def entry(self) -> tuple[int, int]:
        """How many values of the image enter as one token or place, and how many numbers that is then."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with fresh weights."""

    @abstractmethod
    def check_size(self, height: int, width: int) -> None:
        """Raises UserError for an image size it cannot hold, naming the next valid ones."""

    @abstractmethod
    def macs(self, height: int, width: int, kept: int | None = None, tokens: int = 0) -> int:
        """Multiply-accumulates of one forward pass on one image, with so many patches kept (None: all) and so many
        tokens of text."""


@dataclass(frozen=True, slots=True)
class Number:
    """One number of an evaluation; `details` say how sure it is and what it was made with."""

    name: str
    value: float
    lower_is_better: bool = True
    details: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """Held-out samples of a stage that reads captions: one caption each, and how their images are read, uint8 (n, C, H,
    W) by number. `known_as` changes when they do."""

    captions: Sequence[str]
    read: Callable[[range], Tensor]
    known_as: str


@dataclass(frozen=True)
class Look:
    """What a stage shows of itself: how images of seed s and of given labels (n,) are drawn with averaged weights, by
    captions, one each (none: those of its training samples, where it reads any), and how its training images are read
    (None: it has latents only), both uint8 (n, C, H, W) by number. `held` is None where it reads no captions, or holds
    no images out.

    `drawn` and `trained_on` change when the weights or the training images do. `folder` is the evaluator's to write in,
    now; `shared` at any time; `weights` is where networks that judge are kept.
    """

    draw: Callable[[int, range, Tensor, Sequence[str]], Tensor]
    drawn: str
    read: Callable[[range], Tensor] | None
    trained_on: str
    count: int
    shape: tuple[int, ...]
    classes: int
    folder: Path
    shared: Path
    weights: Path
    device: torch.device
    progress: bool
    held: Held | None = None


class Evaluator(ABC):
    """What judges a stage every `every_images` images, by numbers of which one, `best` ("": none), says which
    checkpoint is kept."""

    every_images: int
    best: str

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the folder it writes in; a stage's evaluators have different ones."""

    @property
    def warning(self) -> str:
        """What people may not have meant by it; "" for nothing."""
        return ""

    def check(self, images: bool, held: bool, weights: Path) -> None:
        """Raises what can be known before anything is trained: of whether the data are `images`, or latents only, of
        whether images with captions are `held` out, and of the folder of `weights`."""
        return

    @abstractmethod
    def evaluate(self, look: Look) -> Sequence[Number]:
        """Its numbers now."""
