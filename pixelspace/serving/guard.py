"""What stands between the network and a page: who may ask, how much at once, and what browsers may do with the answer.

A page is bound to this machine alone unless it is made public, and then asks for a token. Requests that come by a name
which is not this machine's, or from another site's page, are refused: else any site that a user visits could ask in
their name (cross-site requests, DNS rebinding). Nothing here takes a path from a request: files are read once, by name.
"""

import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import socket
import sys
import traceback
from asyncio import CancelledError, TimerHandle, timeout
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pixelspace.config import parse_json
from pixelspace.errors import PixelspaceError, ResourceError, UserError

try:
    import h11
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import Headers
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse  # noqa: F401
    from starlette.routing import BaseRoute, Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ResourceError(f"{error.name} is not installed; pip install 'pixelspace[ui]'") from error

MAX_BODY, MAX_URL, MAX_HEADERS = 65_536, 2_048, 16_384  # bytes
READ_SECONDS, DRAIN_SECONDS = 10, 10
CONNECTIONS = 100
TOKEN_CHARACTERS = 16
HEADERS = {
    # Scripts and styles are files of the page: what a prompt says can never run.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page listens: on this machine only, or on another address with a token that every user must have."""

    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise UserError(f"port must be from 0 (any free one) to 65,535, found {self.port}")
        if not self.local and self.token is None:
            raise UserError(
                f"host {self.host}: others could use this page; give --public if that is meant, or leave it out"
            )
        if self.token is not None and not (len(self.token) >= TOKEN_CHARACTERS and _is_plain(self.token)):
            raise UserError(f"token: expected {TOKEN_CHARACTERS} letters, digits, '-' or '_' or more of them")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return _is_loopback(self.host)

    def url(self, port: int) -> str:
        """What to open in a browser, once it is known which port it is."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}/" + (f"?token={self.token}" if self.token else "")


def place(host: str, port: int, public: bool, token: str | None) -> Place:
    """The place of these options; a public one gets a random token if none is given.

    Raises:
        UserError: another address than this machine's that is not said to be public, or a token that can be guessed.
    """
    if public:
        return Place("0.0.0.0" if _is_loopback(host) else host, port, token or secrets.token_urlsafe(24))
    return Place(host, port, token)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.replace("-", "").replace("_", "").isalnum()


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Guard:
    """The application behind a guard: refuses what must not or need not reach it, and puts `HEADERS` on every answer.

    A body reaches the application whole or not at all: JSON of at most `MAX_BODY` bytes that came in `READ_SECONDS`.
    """

    def __init__(self, app: ASGIApp, token: str | None = None):
        self.app, self.token = app, token
        # Browsers send cookies to all ports of a machine: each page's has its own name.
        self.cookie = f"pixelspace-{hashlib.sha256(token.encode()).hexdigest()[:8]}" if token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if scope["type"] != "http":  # no page uses web sockets
            return
        refusal = self._refused(scope) or self._unknown(scope)
        body = b""
        if refusal is None and scope["method"] not in ("GET", "HEAD"):
            body = await _body(receive)
            if body is None:
                return
            refusal = body if isinstance(body, Response) else None
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replayed, guarded)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if len(scope.get("raw_path", b"")) + len(scope["query_string"]) > MAX_URL:
            return told(414, f"this address is longer than {MAX_URL:,} characters")
        if sum(len(name) + len(text) for name, text in scope["headers"]) > MAX_HEADERS:
            return told(431, f"the headers are longer than {MAX_HEADERS:,} bytes; delete this site's cookies")
        host = headers.get("host", "")
        # Whoever has the token may come by any name: that of this machine is not known here.
        if self.token is None and not _is_loopback(_hostname(host)):
            return told(421, "this page is only for its own machine; open it as localhost or 127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return told(403, "a page of another site asked for this, which is refused")
        if scope["method"] not in ("GET", "HEAD"):
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return told(403, "a page of another site asked for this, which is refused")
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return told(415, "expected JSON, with the content type application/json")
            if int(headers.get("content-length", "0")) > MAX_BODY:  # digits only, or it would not have come so far
                return told(413, f"more than {MAX_BODY:,} bytes were sent; shorten the prompts")
        return None

    def _unknown(self, scope: Scope) -> Response | None:
        """An answer to whoever does not have the token yet: one who brings it by the address gets it as a cookie, so
        that it does not stay there."""
        if self.token is None:
            return None
        request, token = Request(scope), self.token
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if _same(request.cookies.get(self.cookie, ""), token) or (scheme.lower() == "bearer" and _same(given, token)):
            return None
        if request.method in ("GET", "HEAD") and _same(request.query_params.get("token", ""), token):
            query = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
            answer = RedirectResponse("/" + scope["path"].lstrip("/") + (f"?{urlencode(query)}" if query else ""), 303)
            answer.set_cookie(self.cookie, token, httponly=True, samesite="lax")
            return answer
        return told(401, "this page needs the token of the link that was printed when it was started")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


async def _body(receive: Receive) -> bytes | Response | None:
    """The body of a request, None of one who has gone."""
    body = b""
    try:
        async with timeout(READ_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    return told(413, f"more than {MAX_BODY:,} bytes were sent; shorten the prompts")
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        return told(408, f"the request did not arrive within {READ_SECONDS} seconds", {"connection": "close"})


def told(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says in one line what is wrong."""
    return JSONResponse({"error": line}, status, headers)


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object that was sent.

    Raises:
        UserError: something else, or what JSON should not hold: a key twice, NaN, half a surrogate pair.
    """
    try:
        data = parse_json((await request.body()).decode("utf-8"))
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # refuses half of a surrogate pair, wherever it stands
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON in UTF-8: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"expected a JSON object, found {type(data).__name__}")
    return data


def static(package: str, names: Mapping[str, str]) -> list[BaseRoute]:
    """Routes to files of a package, by address: each is read now, and no other can ever be asked for."""

    def route(path: str, name: str) -> Route:
        data = files(package).joinpath(name).read_bytes()

        async def answer(_: Request) -> Response:
            return Response(data, media_type=TYPES[Path(name).suffix])

        return Route(path, answer, methods=["GET"])

    return [route(path, name) for path, name in names.items()]


async def _told_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return told(error.status_code, error.detail.lower(), error.headers)


async def _told_ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, PixelspaceError)
    return told(422 if isinstance(error, UserError) else 500, str(error))


def guarded(routes: Sequence[BaseRoute], token: str | None = None) -> Guard:
    """An application of these routes behind a guard. What they raise of ours is answered with its line, a `UserError`
    as 422."""
    app = Starlette(routes=routes, exception_handlers={HTTPException: _told_http, PixelspaceError: _told_ours})
    app.router.redirect_slashes = False
    return Guard(app, token)


class _Impatient(H11Protocol):
    """HTTP/1.1 that gives up on a client whose next request does not begin and end its headers in `READ_SECONDS`."""

    late: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.late = self.loop.call_later(READ_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        asked = self.conn.their_state is not h11.IDLE or not self.conn.trailing_data[0]
        if asked and self.late is not None:
            self.late.cancel()
            self.late = None
        elif not asked and self.late is None:
            self.late = self.loop.call_later(READ_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.late is not None:
            self.late.cancel()


class _OneLine(logging.Handler):
    """Says faults of ours in one line each, and keeps their tracebacks in a file."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or isinstance(error, CancelledError):  # of what is not drained when the server ends
            return
        kept = Path("pixelspace-error.log").resolve()
        try:
            with kept.open("a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            where = f"the traceback is in {kept}"
        except OSError as refused:
            where = f"no traceback is kept: {kept}: {refused.strerror}"
        said = str(error).strip().splitlines()
        line = f"{type(error).__name__}: {said[-1] if said else ''}"
        print(f"error: {line} (a fault of pixelspace; {where})", file=sys.stderr, flush=True)


def _listening(place: Place) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(CONNECTIONS)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        where = f"{place.host}, port {place.port}"
        raise ResourceError(f"{where}: {error.strerror}; give another by --port (0: any free one)") from error
    return listening


def run(app: Guard, place: Place, say: Callable[[str], None] = print) -> None:
    """Serves until the process is interrupted; `say` is told, in one line, what to open in a browser.

    Raises:
        ResourceError: the port is in use, or may not be had.
    """
    with _listening(place) as listening:
        config = uvicorn.Config(
            app,
            http=_Impatient,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=READ_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADERS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        logger = logging.getLogger("uvicorn.error")
        logger.handlers, logger.propagate = [_OneLine()], False
        who = "" if place.local else "; whoever has this link can use it, and what is sent is not encrypted"
        say(f"open {place.url(listening.getsockname()[1])} (Ctrl-C ends it{who})")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # which uvicorn raises once all is closed
            return
