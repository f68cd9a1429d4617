"""Text encoders by the words of a command line: see `encoder_of`."""

from dataclasses import replace
from pathlib import Path

from pixelspace.errors import UserError
from pixelspace.text.bytes import Bytes
from pixelspace.text.cache import Cached, is_embeddings, read_manifest
from pixelspace.text.encoder import TextEncoder
from pixelspace.text.minilm import MiniLM
from pixelspace.text.pretrained import Pretrained

NAMED: dict[str, MiniLM | Bytes] = {"minilm": MiniLM(), "bytes": Bytes()}


def encoder_of(word: str, length: int | None = None) -> TextEncoder:
    """`minilm`, `bytes`, a folder of embeddings, a folder of a model, or a model's name on the hub; `length` is that of
    the encoder, unless None.

    Raises:
        UserError: a length for embeddings, which have theirs.
        DataError: embeddings that are not whole.
    """
    path = Path(word)
    if is_embeddings(path):
        if length is not None:
            raise UserError(f"{word}: embeddings have the length that they were made with; leave the length out")
        return Cached(read_manifest(path).plan.encoder, str(path.resolve()))
    found = NAMED.get(word) or Pretrained(str(path.resolve()) if path.is_dir() else word)
    return found if length is None else replace(found, length=length)
