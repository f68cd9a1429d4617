"""What a description that leaves this machine must not tell: where files lie, and whose they are."""

from pathlib import Path
from typing import Any

# The settings of values that name a file or a folder of the user's.
PLACES = frozenset({"path", "vae", "names", "images", "annotations", "table"})


def _without_place(given: str) -> str:
    """Its last name, but for a name on the hub, user/name."""
    if given.count("/") == 1 and not given.startswith(("/", ".", "~")) and not Path(given).exists():
        return given
    return given.rstrip("/\\").replace("\\", "/").rpartition("/")[2].partition("?")[0]


def without_places(data: Any) -> Any:
    """Plain data of values with the last name alone of each file, folder and URL."""
    if isinstance(data, list):
        return [without_places(item) for item in data]
    if not isinstance(data, dict):
        return data
    return {
        key: _without_place(item) if key in PLACES and isinstance(item, str) else without_places(item)
        for key, item in data.items()
    }
