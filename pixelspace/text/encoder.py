"""Captions to what a network reads of them. A `TextEncoder` is a value; opened, it is a `Reader`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pixelspace.errors import DataError, UserError
from pixelspace.types import Cond


def check_unicode(texts: Sequence[str]) -> None:
    """Raises DataError for a caption that is not Unicode: a file name's undecodable bytes, it may be."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the caption {text[:60]!r} is not Unicode text: {error.reason}") from error


@dataclass(frozen=True, slots=True)
class Encoded:
    """Of B captions: tokens (B, L, D), mask (B, L) bool, true where there is one, and pooled (B, P); float32.

    Tokens are 0 where there is none. Every caption has at least one token, the empty one too.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def cond(self) -> Cond:
        """As a network is given it."""
        return {"text": self.tokens, "text_mask": self.mask, "pooled": self.pooled}


class Reader(ABC):
    """A text encoder at hand, frozen. `width` D and `pooled_width` P are those of what it gives; `identity` changes
    when that does, weights included."""

    width: int
    pooled_width: int
    identity: str

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Encoded:
        """What the captions mean, on the reader's device and without gradient.

        Raises:
            DataError: a caption that cannot be read.
        """

    @abstractmethod
    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each caption before any is cut off."""


class TextEncoder(ABC):
    """How captions are read, as a value. Those longer than `length` tokens are cut there; shorter ones are filled up to
    it, so that all batches have one shape, or with `fill` false to the longest of a batch."""

    length: int
    fill: bool

    @property
    def direct(self) -> "TextEncoder":
        """The encoder that reads any caption, where this one looks up what another has read."""
        return self

    def filled(self) -> "TextEncoder":
        """The same encoder, with `fill`: what it gives of a caption has one shape, whichever others stand beside it."""
        return replace(self, fill=True)  # type: ignore[type-var]  # every encoder is a value

    def identity(self) -> str | None:
        """The identity of its reader, found without filling memory with it; None where its weights are not on this
        machine."""
        return self.open(torch.device("cpu")).identity

    def at(self, path: str) -> "TextEncoder":
        """The same encoder, kept in another place.

        Raises:
            UserError: it is not kept in a place of the user's.
        """
        raise UserError(f"text: {type(self).__name__} is part of an installed package; there is no other place to give")

    @abstractmethod
    def open(self, device: torch.device) -> Reader:
        """The encoder with its weights.

        Raises:
            UserError: a path that holds no such encoder.
            CheckpointError: weights that are absent or damaged.
            ResourceError: a package that is not installed, or a download that failed.
        """
