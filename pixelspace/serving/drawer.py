"""The page that draws: its addresses, and the stream of lines that each drawing is answered with."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pixelspace.errors import PixelspaceError, UserError
from pixelspace.serving.drawing import Drawing, unsaid
from pixelspace.serving.guard import (
    Guard,
    JSONResponse,
    Message,
    Receive,
    Request,
    Response,
    Route,
    Scope,
    Send,
    StreamingResponse,
    guarded,
    json_object,
    static,
    told,
)
from pixelspace.serving.offer import Offer, Wanted, wanted
from pixelspace.serving.turns import Busy, Turn, Turns

PAGE = {
    "/": "draw.html",
    "/draw.css": "draw.css",
    "/draw.js": "draw.js",
    "/draw_gallery.js": "draw_gallery.js",
}
CLIENT_CHARACTERS = 64
BEHIND_LINES = 8
SEND_SECONDS = 60  # in which a client must take a line


class Drawer:
    """Draws what is asked for, one after the other, in one thread beside the one that answers."""

    def __init__(self, offer: Offer, seconds: float):
        self.offer, self.seconds = offer, seconds
        self.turns = Turns()
        self.thread = ThreadPoolExecutor(1, "drawing")

    async def told_offer(self, _: Request) -> Response:
        """What can be asked for."""
        return JSONResponse(self.offer.described())

    async def health(self, _: Request) -> Response:
        """That it lives, and how many drawings are under way or waiting."""
        return JSONResponse({"drawings": len(self.turns.turns)})

    async def draw(self, request: Request) -> Response:
        """A stream of JSON lines; whoever closes it cancels the drawing."""
        data = await json_object(request)
        asked = wanted(data)
        try:
            self.offer.of(asked).check(asked)
        except UserError:
            raise
        except PixelspaceError as error:
            return told(503, unsaid(error))
        address = request.client.host if request.client else ""
        client = f"{address} {request.headers.get('x-client', '')[:CLIENT_CHARACTERS]}"
        try:
            turn = self.turns.enter(client)
        except Busy as error:
            return told(429, str(error), {"retry-after": "5"})
        return _Stream(self, turn, asked)


class _Stream(StreamingResponse):
    """The answer to one request for a drawing. However it ends, the drawing stops and its turn is given up."""

    def __init__(self, drawer: Drawer, turn: Turn, asked: Wanted):
        loop, self.lines = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
        self.drawer, self.turn, self.begun = drawer, turn, False

        def say(line: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self.lines.put_nowait, line)

        self.drawing = Drawing(
            drawer.offer.of(asked), asked, drawer.seconds, say, lambda: self.lines.qsize() > BEHIND_LINES
        )
        super().__init__(self._told(), media_type="application/x-ndjson")

    async def _told(self) -> AsyncIterator[str]:
        async for ahead in self.drawer.turns.ahead(self.turn):
            yield _line({"kind": "queued", "ahead": ahead})
        self.begun = True
        running = asyncio.get_running_loop().run_in_executor(self.drawer.thread, self.drawing.run)
        running.add_done_callback(self._ended)
        while (line := await self.lines.get()) is not None:
            yield _line(line)
        await running  # raises what was a fault of ours

    def _ended(self, running: asyncio.Future[None]) -> None:
        self.drawer.turns.leave(self.turn)
        if not running.cancelled():
            running.exception()  # seen here, for the case that nobody waits for it any more
        self.lines.put_nowait(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def soon(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, soon)
        except TimeoutError:  # a client that takes nothing is as good as gone
            return
        finally:
            self.drawing.cancelled.set()
            if not self.begun:  # else its turn lasts until the step under way has ended
                self.drawer.turns.leave(self.turn)


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data) + "\n"


def page(offer: Offer, seconds: float, token: str | None = None) -> Guard:
    """The page behind its guard; a drawing may take so many seconds."""
    drawer = Drawer(offer, seconds)
    return guarded(
        [
            *static("pixelspace.serving", PAGE),
            Route("/offer", drawer.told_offer, methods=["GET"]),
            Route("/health", drawer.health, methods=["GET"]),
            Route("/draw", drawer.draw, methods=["POST"]),
        ],
        token,
    )
