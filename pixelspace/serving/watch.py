"""A page on which trainings are watched: what `Runs` reads of their folders, behind the guard."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from pixelspace.serving.guard import Guard, Request, Response, Route, guarded, static, told
from pixelspace.serving.watch_runs import Runs

PAGE = {
    "/": "watch.html",
    "/watch.css": "watch.css",
    "/watch.js": "watch.js",
    "/watch_chart.js": "watch_chart.js",
    "/watch_sheets.js": "watch_sheets.js",
}
MAX_DIGITS = 10


def _json(request: Request, found: Any) -> Response:
    """JSON, or that it is what the browser has already."""
    if found is None:
        return told(404, "this run, stage or sheet is not there (any more)")
    data = json.dumps(found, allow_nan=False, separators=(",", ":")).encode()
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"etag": etag})
    return Response(data, media_type="application/json", headers={"etag": etag})


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else None


def watching(root: Path, token: str | None = None) -> Guard:
    """The application that shows the runs in the folder `root`. It reads there, and only there, and writes nothing."""
    runs, turn = Runs(root.resolve()), Lock()

    def route(path: str, answer: Callable[[Request], Response]) -> Route:
        def in_turn(request: Request) -> Response:  # in a thread of its own, so that a slow disk holds up no other page
            with turn:
                return answer(request)

        return Route(path, in_turn, methods=["GET"])

    def summary(request: Request) -> Response:
        return _json(request, runs.summary())

    def settings(request: Request) -> Response:
        return _json(request, runs.settings(request.path_params["run"]))

    def stage(request: Request) -> Response:
        index = _number(request.path_params["stage"])
        return _json(request, None if index is None else runs.detail(request.path_params["run"], index))

    def sheet(request: Request) -> Response:
        index, images = _number(request.path_params["stage"]), _number(request.path_params["images"])
        found = runs.stage(request.path_params["run"], index) if index is not None else None
        data = found.sheet(images, request.query_params.get("level", "")) if found and images is not None else None
        # The page asks by the time of writing, too: what is drawn anew has another address.
        keep = {"cache-control": "private, max-age=3600"}
        return _json(request, None) if data is None else Response(data, headers=keep, media_type="image/png")

    return guarded(
        [
            *static("pixelspace.serving", PAGE),
            route("/runs", summary),
            route("/runs/{run}/settings", settings),
            route("/runs/{run}/stages/{stage}", stage),
            route("/runs/{run}/stages/{stage}/samples/{images}", sheet),
        ],
        token,
    )
