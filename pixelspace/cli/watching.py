"""The command that shows trainings in the browser: watch."""

import os
from pathlib import Path

from tyro.conf import Positional

from pixelspace.errors import UserError


def watch(
    runs: Positional[Path] = Path("runs"),
    *,
    host: str = "127.0.0.1",
    port: int = 7861,
    public: bool = False,
) -> None:
    """Watch trainings in the browser: a page on this machine, until Ctrl-C. It reads the runs' folders, nothing else.

    Args:
        runs: A run's folder, or one that holds runs.
        host: The address to listen at.
        port: Where; 0 takes any free one.
        public: Let others see the page, whoever has the link that is printed: with the token in PIXELSPACE_TOKEN, or a
            random one.
    """
    from pixelspace.serving import guard  # first: it says which packages are missing
    from pixelspace.serving.watch import watching

    where = guard.place(host, port, public, os.environ.get("PIXELSPACE_TOKEN") if public else None)
    if not runs.is_dir():
        found = "a file" if runs.exists() else "nothing"
        raise UserError(f"{runs}: expected a folder with runs, or of one, found {found}; give the --out of a training")
    guard.run(watching(runs, where.token), where, lambda line: print(line, flush=True))
