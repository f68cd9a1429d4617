"""Captions to tokens, by a model's own tokenizer or as Matryoshka Diffusion cuts T5's pieces.

A special token that is written in a caption is read as the text it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixelspace.errors import CheckpointError, UserError
from pixelspace.text.huggingface import library, reading

Form = Literal["library", "mdm", "mdm-training"]

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
_WHOLE = ({"tokenizer.json"}, {"vocab.txt"}, {"vocab.json", "merges.txt"}, *({name} for name in FILES[-3:]))


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer; `pad` is the token that fills up."""

    of_library: Any
    pad: int

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """All tokens of each caption."""
        return self._ids(texts, truncation=False)

    def cut(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """At most `length` tokens of each, special ones at the end among them."""
        return self._ids(texts, truncation=True, max_length=length)

    def _ids(self, texts: Sequence[str], **how: Any) -> list[list[int]]:
        if not texts:
            return []
        return self.of_library(list(texts), split_special_tokens=True, verbose=False, **how)["input_ids"]


@dataclass(frozen=True)
class _Matryoshka(Tokenizer):
    """Pieces as apple/ml-mdm finds them: the text after one space, with `trailing` before another one too, is split
    where its pieces' scores sum to the most; nothing is normalised, and characters that no piece has are dropped. The
    end token is put behind and may be cut off."""

    pieces: Any
    unknown: int
    end: int
    trailing: bool

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        spaced = [f" {text}{' ' * self.trailing}" for text in texts]
        rows = self.pieces.encode_batch(spaced, add_special_tokens=False)
        return [[i for i in row.ids if i != self.unknown] + [self.end] for row in rows]

    def cut(self, texts: Sequence[str], length: int) -> list[list[int]]:
        return [row[:length] for row in self.whole(texts)]


def _as_matryoshka(folder: Path, own: Any, form: Form) -> _Matryoshka:
    import tokenizers  # pyright: ignore  # comes with transformers

    model: Any = own.backend_tokenizer.model if hasattr(own, "backend_tokenizer") else None
    if not isinstance(model, tokenizers.models.Unigram):
        raise UserError(f"{folder}: spaces={form!r} is a way to cut T5's pieces, and its tokenizer has none")
    pieces = tokenizers.Tokenizer(model)
    pieces.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    return _Matryoshka(own, own.pad_token_id, pieces, own.unk_token_id, own.eos_token_id, form == "mdm-training")


def open_tokenizer(folder: Path, vocabulary: int, form: Form) -> Tokenizer:
    """The tokenizer in a model's folder, for a network that knows `vocabulary` tokens.

    Raises:
        CheckpointError: absent, damaged or another model's.
        UserError: it cannot do `form`.
    """
    there = {name for name in FILES if (folder / name).is_file()}
    if not any(names <= there for names in _WHOLE):  # without these transformers makes an empty one
        raise CheckpointError(f"{folder}: no tokenizer.json, nor an older tokenizer's files; captions need them")
    with reading(folder):
        own = library().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if len(own) > vocabulary:
        raise CheckpointError(f"{folder}: its tokenizer knows {len(own)} tokens, its network {vocabulary}")
    if own.pad_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer has no token to fill up with (pad_token)")
    found = Tokenizer(own, own.pad_token_id) if form == "library" else _as_matryoshka(folder, own, form)
    if not found.whole([""])[0]:
        raise CheckpointError(f"{folder}: its tokenizer makes no token of an empty caption, not even one for its end")
    return found
