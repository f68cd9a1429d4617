"""What `pixelspace prepare` says of files it has looked at, before it refuses too many bad ones."""

import json
from pathlib import Path

from pixelspace.data.index import Index, index_path
from pixelspace.data.preparation import Preparation
from pixelspace.data.remote import Files
from pixelspace.data.shard_index import Images, Indexed, Scanner, build_index, images_at, verify_images
from pixelspace.data.shard_part import AGAIN
from pixelspace.errors import ResourceError
from pixelspace.files import drop_abandoned, publish


def _keep_rejects(index: Index, cache: Path) -> Path:
    """A line of JSON for every bad file, beside the index that the cache keeps."""
    path = index_path(Path(index.root), cache, index.kind.noun).with_suffix(".rejects.jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{path.parent}: cannot be written: {error.strerror}") from error
    drop_abandoned(path)
    rows = (json.dumps({"file": entry.name, "reason": entry.reason}) for entry in index.bad)
    publish(path, "".join(f"{row}\n" for row in rows).encode(), AGAIN)
    return path


def report(index: Index, cache: Path, how: Preparation, max_bad_share: float) -> None:
    """Says what is in a folder, and where all that is bad stands.

    Raises:
        DataError: too much is bad.
        ResourceError: the cache cannot be written.
    """
    how.say(index.summary())
    path = _keep_rejects(index, cache)
    if index.bad:
        how.say(f"all that is bad: {path}")
    index.check(max_bad_share)


def report_shards(
    files: Files,
    indexed: Indexed,
    folder: Path,
    how: Preparation,
    max_bad_share: float,
    scanner: Scanner | None = None,
    images: Images = images_at,
) -> None:
    """Indexes shards in `folder` and says what is in them, or that other programs must finish theirs. `scanner` and
    `images` are for shards that are no tars.

    Raises:
        DataError: too much is bad; `verify` found images that are not what was indexed.
    """
    index = build_index(
        files,
        indexed,
        folder,
        scanner=scanner,
        workers=how.workers,
        rank=how.rank,
        world=how.world,
        progress=how.progress,
    )
    if index is None:
        how.say(f"rank {how.rank} of {how.world}: its shards are done; {folder} is complete when the others are")
        return
    how.say(f"{index.summary()}\nindex: {folder}")
    if how.verify:
        verify_images(index, files, how.workers, images)
        how.say(f"verified: {index.good:,} images are what was indexed")
    index.check(max_bad_share)
