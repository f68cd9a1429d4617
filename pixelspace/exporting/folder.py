"""An export's folder, whole or absent, and what it says of the model it came from: nothing of this machine."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixelspace.config import to_data
from pixelspace.errors import ResourceError, UserError
from pixelspace.model_config import ModelConfig
from pixelspace.places import without_places


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when that is done without an error.

    Raises:
        UserError: `out` holds something already.
        ResourceError: the disk is full or refuses.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something already; give a new or empty folder")
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    try:
        draft.mkdir(parents=True)
        yield draft
        os.replace(draft, out)
    except OSError as error:
        raise ResourceError(
            f"{out}: cannot be written: {error.strerror or error}; make room or give another"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def described(config: ModelConfig) -> dict[str, Any]:
    """The configuration as plain data, without the places of this machine."""
    return without_places(to_data(config))


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
