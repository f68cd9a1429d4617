"""Where the weights of metrics are: looked for in one folder, and downloaded only when asked."""

from dataclasses import dataclass
from pathlib import Path

from pixelspace.errors import ResourceError


@dataclass(frozen=True)
class WeightsFile:
    """A file, or a Hugging Face model folder, by its name below the folder of weights, and what is known of it."""

    name: str
    source: str
    bytes: int
    sha256: str
    licence: str


@dataclass(frozen=True)
class Weights:
    """The folder that weights are looked for in; with `download` what is missing is fetched into it."""

    folder: Path
    download: bool = False

    def find(self, file: WeightsFile) -> Path:
        """Where it is.

        Raises:
            ResourceError: absent; the message says what to put where.
        """
        path = self.folder / file.name
        if not path.exists():
            raise ResourceError(
                f"{path}: no such weights; get {file.name} ({file.bytes:,} bytes, SHA-256 {file.sha256}, "
                f"{file.licence}) from {file.source} and put it there, or name its folder with --weights"
            )
        return path
