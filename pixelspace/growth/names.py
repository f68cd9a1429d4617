"""Names of tensors, and patterns over them: `core.*` is all of the core, `levels.[01].*` two levels."""

import difflib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that the pattern covers, in their order."""
    return [name for name in names if fnmatchcase(name, pattern)]


def hint(wanted: str, names: Collection[str]) -> str:
    """The name or pattern that comes next to one that there is not, and the parts that there are."""
    parts = {part for name in names for i, letter in enumerate(name) if letter == "." for part in [f"{name[:i]}.*"]}
    candidates = [*parts, *names] if "*" in wanted else [*names, *parts]
    close = difflib.get_close_matches(wanted, candidates, n=1)
    tops = sorted({name.partition(".")[0] for name in names})
    return (f"did you mean {close[0]!r}? " if close else "") + f"its parts are {', '.join(tops) or 'none'}"
