"""Folders on the Hugging Face Hub (extra `hub`): what `hf://user/name` means, and how a folder gets there.

A model's repository holds the files of its store folder beside its card. What is read is fetched by name, never run,
and checked against the manifest as a folder on this disk is.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pixelspace.errors import CheckpointError, ResourceError, UserError

_FILES = ("MANIFEST.json", "state.json", "*.safetensors")
_WORD = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
# A path has only one of the slashes left.
_ADDRESS = re.compile(rf"hf:/{{1,2}}({_WORD}/{_WORD})(?:@([\w./-]+))?")
_NAME = re.compile(rf"{_WORD}/{_WORD}")


def is_address(path: Path | str) -> bool:
    """Whether `path` is meant as `hf://user/name`."""
    return str(path).startswith("hf:/")


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors  # it fetches what is asked of it by name, and nothing else
    except ImportError as error:
        raise ResourceError(f"huggingface_hub cannot be imported ({error}); pip install 'pixelspace[hub]'") from error
    return huggingface_hub


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """What the library says of the network, the rights and the disk, as a line of ours."""
    errors = _library().errors
    of_http: tuple[Any, ...] = errors.HfHubHTTPError.__bases__  # of whichever HTTP library it uses
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{what}: no such revision; leave out @... for the newest, or see its page") from error
    except errors.LocalEntryNotFoundError as error:
        raise ResourceError(
            f"{what}: not in this machine's cache, and the hub cannot be reached; try again with a connection and "
            f"without HF_HUB_OFFLINE=1"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ResourceError(
            f"{what}: no such model on the hub, or not for this user; a private one needs `hf auth login` or HF_TOKEN"
        ) from error
    except (OSError, ValueError, *of_http) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ResourceError(f"{what}: the hub refused or cannot be reached: {said:.300}") from error


@contextmanager
def fetched(address: Path | str) -> Iterator[Path]:
    """The store folder at `hf://user/name` or `hf://user/name@revision` (a branch, tag or commit), for as long as the
    context lasts. The hub's library keeps its files for the next time; with HF_HUB_OFFLINE=1 it asks nobody.

    Raises:
        UserError: no such address can be.
        CheckpointError: a repository that holds no model of ours, or no such revision.
        ResourceError: no connection, no right to it, or no package `huggingface_hub`.
    """
    found = _ADDRESS.fullmatch(str(address))
    if not found or ".." in str(address):
        raise UserError(f"{address}: expected hf://user/name, or hf://user/name@revision")
    name, revision = found.groups()
    with _asking(f"hf://{name}"):
        snapshot = Path(_library().snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    if not (snapshot / _FILES[0]).exists():
        raise CheckpointError(f"hf://{name}: holds no {_FILES[0]}, so it is no model that pixelspace pushed there")
    # The library's snapshot is of links, which a store refuses to follow, beside files that are not the model's.
    beside = snapshot.parents[1]
    with tempfile.TemporaryDirectory(dir=beside if os.access(beside, os.W_OK) else None, prefix="model-") as folder:
        for pattern in _FILES:
            for path in snapshot.glob(pattern):
                _link(path.resolve(), Path(folder) / path.name)
        yield Path(folder)


def _link(path: Path, at: Path) -> None:
    try:
        os.link(path, at)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, at)


def check_name(name: str) -> str:
    """`name` of a repository, user/name.

    Raises:
        UserError: it is not such a name.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or len(name) > 96 or name.endswith(".git"):
        raise UserError(
            f"{name}: expected user/name as the hub has them: letters, digits, '-', '_' and '.', at most 96 in all"
        )
    return name


def check_licence(licence: str) -> str:
    """`licence` as the hub has it: an SPDX name in lower case, or other.

    Raises:
        UserError: it is not such a name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UserError(f"licence: expected a name such as apache-2.0, mit, cc-by-4.0 or other; found {licence!r}")
    return licence


def upload(folder: Path, name: str, *, private: bool, revision: str | None) -> str:
    """Makes the repository `name` of a model unless it is there, and puts the files of `folder` into it as one commit,
    in place of what earlier ones of them have there; returns its address. The user's own login or HF_TOKEN is used.

    Raises:
        ResourceError: no connection, no right to it, or no package `huggingface_hub`.
    """
    hub = _library()
    api = hub.HfApi()
    with _asking(f"hf://{name}"):
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message=f"Put a model of pixelspace {version('pixelspace')} here",
            delete_patterns=list(_FILES),
        )
    return f"hf://{name}" + (f"@{revision}" if revision else "")
