"""Folders of tensors and plain data that are either whole or absent, and are checked before they are believed.

A store folder holds one `<part>.safetensors` a part, `state.json`, and `MANIFEST.json`: the size and SHA-256 of every
file, and name, shape and dtype of every tensor. `publish` writes all of it beside its place, syncs it, and puts it
there by one rename; `read` refuses whatever differs from the manifest in a single bit. A safetensors header follows
from the manifest alone, so it is compared, never parsed, and nothing is ever unpickled.

Several processes may write a folder together, each its own rows of tensors: `<part>.<rank>.safetensors`, and in the
manifest from which row on, of how many. It is read as if one had written it, whole or by rows.

Every change to the disk goes through `os.mkdir open write fsync rename unlink rmdir`, looked up in `os` at each call,
so that a test can put a fault at each.
"""

from pixelspace.store.folders import present, remove, set_aside, sweep
from pixelspace.store.manifest import FORMAT, MANIFEST, MAX_HEADER, MAX_JSON, PIECES, Piece
from pixelspace.store.reading import Contents, Rows, read, read_state, verify
from pixelspace.store.writing import publish

__all__ = [
    "FORMAT",
    "MANIFEST",
    "MAX_HEADER",
    "MAX_JSON",
    "PIECES",
    "Contents",
    "Piece",
    "Rows",
    "present",
    "publish",
    "read",
    "read_state",
    "remove",
    "set_aside",
    "sweep",
    "verify",
]
