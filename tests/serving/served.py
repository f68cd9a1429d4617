"""A page served over a real socket by `guard.run`, and requests to it."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from pixelspace.serving import guard


@contextmanager
def serving(app: guard.Guard) -> Iterator[int]:
    """The port of `app`, served as `guard.run` does from another thread."""
    said, servers = [], []
    began = threading.Event()

    class Told(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            servers.append(self)
            await super().startup(sockets)
            began.set()

    original, uvicorn.Server = uvicorn.Server, Told
    try:
        thread = threading.Thread(target=guard.run, args=(app, guard.Place(port=0), said.append))
        thread.start()
        assert began.wait(20)
    finally:
        uvicorn.Server = original
    try:
        yield int(said[0].split("127.0.0.1:")[1].split("/")[0])
    finally:
        servers[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def asked(port: int, method: str = "GET", path: str = "/", body: object = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        if body is not None:
            sent = {"content-type": "application/json", **sent}
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()
