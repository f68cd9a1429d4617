"""One drawing in a thread of its own, told as it goes: what a request is answered with, line by line."""

import base64
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pixelspace.data.pictures import file_of
from pixelspace.errors import NumericalError, PixelspaceError, UserError
from pixelspace.model import Forming
from pixelspace.serving.offer import Offered, Wanted
from pixelspace.serving.preview import SIDE, preview
from pixelspace.training.room import is_out_of_memory

PREVIEW_SECONDS = 0.2
PREVIEW_SHARE = 9  # a preview follows the last after nine times as long as that took: a tenth of the time at most
FPS = 8.0

Say = Callable[[dict[str, Any]], None]


class Cancelled(Exception):
    """Nobody waits for the drawing any more."""


class TooLong(PixelspaceError):
    """A drawing has had its time."""


@dataclass
class Drawing:
    """What was asked of which model, how long it may take, what its steps are told to, and whether whoever hears it is
    `behind`: then there are no previews, which would pile up."""

    offered: Offered
    wanted: Wanted
    seconds: float
    say: Say
    behind: Callable[[], bool] = lambda: False
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Draws, and says every step, previews and the files; what ends it early is said too."""
        began = time.monotonic()
        drawn = [0]  # images that are finished
        rest = 0.0

        def step(forming: Forming) -> None:
            nonlocal rest
            now = time.monotonic()
            if self.cancelled.is_set():
                raise Cancelled
            if now - began > self.seconds:
                raise TooLong(
                    f"it took longer than the {self.seconds:g} seconds that a drawing may take here; take fewer images "
                    f"or steps, or start the server with more --seconds"
                )
            # Solvers that choose their own steps take more than are asked for, or fewer.
            part = (drawn[0] + len(forming.images) * min(forming.done / forming.steps, 1)) / self.wanted.n
            said: dict[str, Any] = {
                "kind": "step",
                "done": forming.done,
                "steps": forming.steps,
                "part": part,
                "left": (now - began) * (1 - part) / part,
                "images": forming.images,
            }
            if now >= rest and not self.behind():
                levels = forming.levels()
                side = SIDE if len(forming.images) == 1 else SIDE // 2
                said["previews"] = [
                    [_base64(preview(level[row], side)) for level in levels] for row in range(len(forming.images))
                ]
                took = time.monotonic() - now
                rest = now + took + max(PREVIEW_SECONDS, PREVIEW_SHARE * took)
            self.say(said)

        def finished(rows: list[int], levels: list[Tensor]) -> None:
            drawn[0] += len(rows)
            for row, number in enumerate(rows):
                settings = self.offered.model.settings(number, self.offered.name, **self.wanted.arguments())
                files = [file_of(level[row], FPS, settings) for level in levels]
                self.say(
                    {
                        "kind": "image",
                        "image": number,
                        "files": [{"type": f"image/{kind}", "data": _base64(data)} for kind, data in files],
                        "settings": {**settings, "seed": str(settings["seed"])},  # browsers round large numbers
                    }
                )

        try:
            for note in self.offered.notes(self.wanted):
                self.say({"kind": "note", "note": note})
            asked, levels = self.wanted.arguments(), self.wanted.levels
            self.offered.model.sample(**asked, every_level=levels, each=finished, watch=step, progress=False)
            self.say({"kind": "done", "seconds": time.monotonic() - began})
        except Cancelled:
            return
        except (UserError, NumericalError, TooLong) as error:
            self.say({"kind": "error", "error": str(error)})
        except PixelspaceError as error:
            self.say({"kind": "error", "error": unsaid(error)})
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.say({"kind": "error", "error": "there is not enough memory; take fewer images or a smaller size"})


def unsaid(error: PixelspaceError) -> str:
    """What users are told of a fault that may name files of this machine, which only the terminal is told."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return "the server cannot draw this now; its terminal says why"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
