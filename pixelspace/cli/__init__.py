"""The command line: see `COMMANDS`.

Exit codes: 0 done, 2 a command or setting that cannot be meant, 3 data, 4 checkpoint, 5 not finite, 6 disk, memory or
a missing package, 7 another process of the run failed, 70 a fault of ours, 75 stopped on request with a checkpoint, 130
interrupted.
"""

import errno
import os
import re
import sys
import traceback
from pathlib import Path

from pixelspace.cli import machine
from pixelspace.cli.arguments import understood
from pixelspace.cli.data import embed, encode, prepare
from pixelspace.cli.diagnosis import diagnose
from pixelspace.cli.evaluation import evaluate, preference, protocols, reference, votes
from pixelspace.cli.models import demo, import_, recipes, show, train
from pixelspace.cli.plan import plan
from pixelspace.cli.sampling import sample
from pixelspace.cli.serving import serve
from pixelspace.cli.sharing import export, push
from pixelspace.cli.watching import watch
from pixelspace.errors import PixelspaceError, ResourceError, Stopped, UserError


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


COMMANDS = {
    "train": train,
    "watch": watch,
    "sample": sample,
    "serve": serve,
    "show": show,
    "plan": plan,
    "import": import_,
    "export": export,
    "push": push,
    "prepare": prepare,
    "encode": encode,
    "embed": embed,
    "evaluate": evaluate,
    "reference": reference,
    "protocols": protocols,
    "preference": preference,
    "votes": votes,
    "diagnose": diagnose,
    "recipes": recipes,
    "demo": demo,
}


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _foreseen(error: Exception) -> PixelspaceError | None:
    """A fault of libraries below us that users can do something about, as one of ours."""
    if isinstance(error, PixelspaceError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return ResourceError(f"{error.filename or 'the disk'}: {error.strerror}")
    kind = type(error).__name__
    if kind in ("OutOfMemoryError", "MemoryError") or re.search("not enough memory|can't allocate memory", str(error)):
        return ResourceError(f"out of memory: {_line(error)}; lower stages.0.micro or the batch")
    if kind == "ValidationError" and hasattr(error, "errors"):
        first = error.errors()[0]  # type: ignore[attr-defined]
        return UserError(str(first.get("ctx", {}).get("error", first["msg"])))
    return None


def _keep_traceback() -> str:
    """Writes the traceback under way into a file and says where; where none can be written, onto the terminal."""
    path = Path("pixelspace-error.log").resolve()
    try:
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as error:
        traceback.print_exc()
        return f"above: {path}: {error.strerror}"
    return f"in {path}"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        understood(arguments, COMMANDS)()
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
        return 0
    except Exception as error:  # the only one: what reaches the terminal is a line and an exit code, whatever it was
        foreseen = _foreseen(error)
        if foreseen is not None:
            if not foreseen.told:
                _say(_line(foreseen) if isinstance(foreseen, Stopped) else f"error: {_line(foreseen)}")
            return foreseen.exit_code
        where = _keep_traceback()
        _say(f"error: {type(error).__name__}: {_line(error)} (a fault of pixelspace; the traceback is {where})")
        return 70
    return 0


def run() -> None:
    """The entry point of the `pixelspace` script."""
    machine.prepare()
    sys.exit(main())
