"""Where else a run can be followed: other people's trackers, each behind the same three calls."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from pixelspace.config import nearest
from pixelspace.errors import ResourceError, UserError

_PROJECT = "pixelspace"


class Tracker(Protocol):
    """Is told all by the number of training images seen."""

    def log(self, metrics: Mapping[str, float], images: int) -> None:
        """Numbers by name."""
        ...

    def picture(self, name: str, path: Path, images: int) -> None:
        """An image file."""
        ...

    def close(self) -> None:
        """Nothing more will be told."""
        ...


def _absent(package: str) -> ResourceError:
    return ResourceError(f"{package} is not installed; pip install 'pixelspace[{package}]'")


def _identity(folder: Path) -> str:
    """Of a stage's folder: a resumed stage goes on in its own record, and one of another run has another."""
    return sha256(str(folder.resolve()).encode()).hexdigest()[:8]


class TensorBoard:
    """TensorBoard event files in the stage's folder (extra `tensorboard`)."""

    def __init__(self, folder: Path, name: str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _absent("tensorboard") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, metrics: Mapping[str, float], images: int) -> None:
        for key, number in metrics.items():
            self.writer.add_scalar(key, number, images)
        self.writer.flush()

    def picture(self, name: str, path: Path, images: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), images, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases (extra `wandb`)."""

    def __init__(self, folder: Path, name: str):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _absent("wandb") from error
        self.image = wandb.Image
        self.run = wandb.init(project=_PROJECT, name=name, dir=str(folder), id=_identity(folder), resume="allow")
        self.run.define_metric("*", step_metric="images")

    def log(self, metrics: Mapping[str, float], images: int) -> None:
        self.run.log({**metrics, "images": images})

    def picture(self, name: str, path: Path, images: int) -> None:
        self.run.log({name: self.image(str(path)), "images": images})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """trackio, which keeps its records on this machine (extra `trackio`; `trackio show` opens them)."""

    def __init__(self, folder: Path, name: str):
        try:
            import trackio  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _absent("trackio") from error
        self.image = trackio.Image
        self.run = trackio.init(_PROJECT, name=f"{name}-{_identity(folder)}", resume="allow", embed=False)

    def log(self, metrics: Mapping[str, float], images: int) -> None:
        self.run.log(dict(metrics), step=images)

    def picture(self, name: str, path: Path, images: int) -> None:
        self.run.log({name: self.image(str(path))}, step=images)

    def close(self) -> None:
        self.run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def check_trackers(names: Iterable[str]) -> None:
    """Refuses names of no tracker.

    Raises:
        UserError: naming the nearest.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"no tracker {name!r}; {nearest(name, TRACKERS)}")


@contextmanager
def tracking(names: Iterable[str], folder: Path, run: str) -> Iterator[list[Tracker]]:
    """The trackers called `names`, of one stage, closed at the end.

    Raises:
        ResourceError: the package of one is absent.
    """
    check_trackers(names)
    with ExitStack() as ends:
        opened: list[Tracker] = []
        for name in names:
            opened.append(TRACKERS[name](folder, run))
            ends.callback(opened[-1].close)
        yield opened
