"""How a data set is looked at once before training, as `pixelspace prepare` was told."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pixelspace.errors import UserError


@dataclass(frozen=True, slots=True)
class Preparation:
    """Where lines go to (`say`), and for data in large files: the folder `out` for their index, how many processes
    read, whether to `verify` what was read before, and which `rank` of how many programs this one is."""

    say: Callable[[str], None] = print
    out: Path | None = None
    workers: int | None = None
    verify: bool = False
    rank: int = 0
    world: int = 1
    progress: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers must be at least 1, found {self.workers}")
        if self.verify and self.world > 1:
            raise UserError(f"--verify is for one process, and there are {self.world}; start it without torchrun")

    def only(self, kind: str, *names: str) -> None:
        """Raises UserError where another than these options is given to data of a `kind`."""
        for name, given in (("out", self.out), ("workers", self.workers), ("verify", self.verify)):
            if given and name not in names:
                raise UserError(f"--{name} is not for {kind}")
