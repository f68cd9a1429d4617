"""Captions through a frozen network of transformers, from a folder in Hugging Face's layout."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pixelspace.config import nearest
from pixelspace.errors import CheckpointError, UserError
from pixelspace.foreign import read_config
from pixelspace.text.encoder import Encoded, Reader, check_unicode
from pixelspace.text.families import FAMILIES, Family
from pixelspace.text.huggingface import library, load_model
from pixelspace.text.tokens import FILES, Form, Tokenizer, open_tokenizer

# The network always sees this many captions, filled up to one of few lengths, and one more of a single token: so little
# is computed for padding, and what it makes of a caption does not depend on the others, but for the last bit where the
# number of threads divides a layer oddly. The short one is there because transformers takes another way through
# attention when no caption has padding.
_ROWS, _SHORTEST = 7, 16
# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Frozen:
    """A text encoder in the folder `folder`, and how it is used."""

    folder: Path
    length: int
    fill: bool
    precision: Literal["fp32", "bf16"]
    spaces: Form = "library"

    def family(self) -> tuple[str, Family]:
        """Its model_type, and what that means.

        Raises:
            CheckpointError: no config.json.
            UserError: a model that is no text encoder.
        """
        name = read_config(self.folder, "a text encoder").get("model_type")
        if not isinstance(name, str) or name not in FAMILIES:
            raise UserError(
                f"{self.folder}: config.json says model_type {name!r}, which is no text encoder that pixelspace "
                f"knows; {nearest(str(name), FAMILIES)}"
            )
        return name, FAMILIES[name]

    def weights(self) -> list[Path]:
        """The files that its weights are read from."""
        for pattern in WEIGHTS:
            if found := sorted(self.folder.glob(pattern)):
                return found
        raise CheckpointError(
            f"{self.folder}: a folder without weights: expected model.safetensors, or pytorch_model.bin, or their parts"
        )

    def identity(self) -> str:
        """What the reader will be called: its settings, and a hash of the files that it is made of.

        Raises:
            CheckpointError, UserError: as `open`, as far as it looks.
        """
        name, _ = self.family()
        settings = [path for file in ("config.json", *FILES) if (path := self.folder / file).is_file()]
        found = hashlib.sha256()
        try:
            for path in (*settings, *self.weights()):
                with path.open("rb") as file:
                    found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
        form = "" if self.spaces == "library" else f", spaces as {self.spaces}"
        return f"{name} up to {self.length} tokens in {self.precision}{form}, files {found.hexdigest()[:16]}"

    def open(self, device: torch.device) -> "NetworkReader":
        """The encoder with its weights.

        Raises:
            ResourceError: transformers is not installed.
            CheckpointError: no config.json, weights or tokenizer, or damaged ones.
            UserError: a model that is no text encoder; a length that it cannot do.
        """
        library()
        (_, family), identity = self.family(), self.identity()
        network = load_model(
            family.network, self.folder, _DTYPES[self.precision], unused=family.unused, settings=family.settings
        )
        most = family.most(network.config)
        if most and (self.length > most or (family.fixed and self.length < most)):
            always = "always " if family.fixed else "at most "
            raise UserError(f"{self.folder}: reads {always}{most} tokens; set length to {most}, found {self.length}")
        tokenizer = open_tokenizer(self.folder, network.config.vocab_size, self.spaces)
        return NetworkReader(self, family, identity, tokenizer, network, device)


class NetworkReader(Reader):
    """Tokens are the last hidden state after the final norm; pooled as the model's family has it."""

    def __init__(
        self,
        frozen: Frozen,
        family: Family,
        identity: str,
        tokenizer: Tokenizer,
        network: Any,
        device: torch.device,
    ):
        self._length, self._fill = frozen.length, frozen.fill
        self._family, self._tokenizer, self.identity = family, tokenizer, identity
        self._network, self._device = network.to(device), device
        self.width = network.config.hidden_size
        self.pooled_width = network.config.projection_size if family.fixed else self.width

    def lengths(self, texts: Sequence[str]) -> list[int]:
        check_unicode(texts)
        return list(map(len, self._tokenizer.whole(texts)))

    def _groups(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """Numbers of up to `_ROWS` captions, and the length that they are filled up to."""
        groups = defaultdict[int, list[int]](list)
        for i, row in enumerate(rows):
            size = self._length if self._family.fixed else _SHORTEST
            while size < len(row):
                size *= 2
            groups[min(size, self._length)].append(i)
        for size, some in groups.items():
            yield from ((size, some[at : at + _ROWS]) for at in range(0, len(some), _ROWS))

    def _read(self, rows: Sequence[Sequence[int]], size: int) -> tuple[Tensor, Tensor]:
        """Tokens (n, size, D), 0 where there is none, and pooled (n, P) of n rows; n is at most `_ROWS`."""
        filled = [*rows, *[rows[-1]] * (_ROWS - len(rows)), rows[-1][:1]]
        ids = torch.tensor([[*row, *[self._tokenizer.pad] * (size - len(row))] for row in filled], device=self._device)
        ends = torch.tensor([len(row) for row in filled], device=self._device)
        mask = torch.arange(size, device=self._device) < ends[:, None]
        found = self._network(input_ids=ids, attention_mask=None if self._family.fixed else mask.long())
        tokens = found.last_hidden_state.float()
        pooled = self._family.pooled(found, tokens, mask)
        return (tokens * mask[..., None])[: len(rows)], pooled[: len(rows)]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Encoded:
        check_unicode(texts)
        rows = self._tokenizer.cut(texts, self._length)
        ends = torch.tensor([len(row) for row in rows], device=self._device, dtype=torch.int64)
        length = self._length if self._fill else max(map(len, rows), default=1)
        tokens = torch.zeros(len(rows), length, self.width, device=self._device)
        pooled = torch.zeros(len(rows), self.pooled_width, device=self._device)
        with torch.autocast(self._device.type, enabled=False):
            for size, some in self._groups(rows):
                found, summary = self._read([rows[i] for i in some], size)
                tokens[some, :size] = found[:, :length]
                pooled[some] = summary
        return Encoded(tokens, torch.arange(length, device=self._device) < ends[:, None], pooled)
