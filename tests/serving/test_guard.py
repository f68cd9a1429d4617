"""The guard before every page, over real sockets and as an application."""

import json
import socket
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pixelspace.errors import ResourceError, UserError
from pixelspace.serving import guard
from tests.serving.served import asked, serving

TOKEN = "0123456789abcdef"
COOKIE = guard.Guard(JSONResponse({}), TOKEN).cookie


async def echo(request: Request) -> JSONResponse:
    return JSONResponse(await guard.json_object(request) if request.method == "POST" else {})


ROUTES = [Route("/", echo, methods=["GET", "POST"])]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(guard.guarded(ROUTES)) as port:
        yield port


@pytest.fixture(scope="module")
def private_port() -> Iterator[int]:
    with serving(guard.guarded(ROUTES, TOKEN)) as port:
        yield port


def test_every_answer_has_the_security_headers_and_does_not_say_what_serves_it(port):
    for status, _, headers in (asked(port), asked(port, path="/none"), asked(port, "PUT", body={})):
        assert status in (200, 404, 405)
        assert {name: headers[name] for name in guard.HEADERS} == guard.HEADERS
        assert "server" not in headers


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "127.9.9.9", "[::1]:7860", "LOCALHOST:1"])
def test_this_machine_is_answered_by_each_of_its_names(port, host):
    assert asked(port, host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", "", "[::", "127.0.0.1@evil"])
def test_a_request_by_another_name_is_refused(port, host):
    status, body, _ = asked(port, host=host)
    assert status in (400, 421) and (status == 400 or b"only for its own machine" in body)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://"])
def test_a_page_of_another_site_is_refused(port, origin):
    for method, body in (("GET", None), ("POST", {})):
        assert asked(port, method, body=body, origin=origin, host=f"localhost:{port}")[0] == 403
    assert asked(port, "POST", body={}, origin=f"http://localhost:{port}", host=f"localhost:{port}")[0] == 200
    assert asked(port, "POST", body={}, sec_fetch_site="cross-site")[0] == 403


def test_a_form_of_another_site_cannot_be_sent(port):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert asked(port, "POST", body=b"{}", content_type=kind)[0] == 415


def test_bodies_headers_and_addresses_have_their_limits(port):
    def of(size: int) -> bytes:
        return b'{"a":"' + b"x" * (size - 8) + b'"}'

    assert asked(port, "POST", body=of(guard.MAX_BODY))[0] == 200
    assert asked(port, "POST", body=of(guard.MAX_BODY + 1))[0] == 413
    assert asked(port, path="/?" + "x" * (guard.MAX_URL - 1))[0] == 200
    assert asked(port, path="/?" + "x" * guard.MAX_URL)[0] == 414
    assert asked(port, more="x" * (guard.MAX_HEADERS - 1000))[0] == 200
    assert asked(port, more="x" * guard.MAX_HEADERS)[0] in (400, 431)


def test_a_body_without_a_length_has_the_same_limit(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(f"{head}\r\n".encode())
        for _ in range(2):
            connection.sendall(b"9000\r\n" + b"x" * 0x9000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b"{", b'{"a":NaN}', b'{"a":1,"a":2}', b'{"a":"\\ud800"}', b"\xff", b"[" * 60_000]
)
def test_what_is_no_json_object_is_refused_in_one_line(port, body):
    status, answer, _ = asked(port, "POST", body=body)
    line = json.loads(answer)["error"]
    assert status == 422 and line.startswith("expected ") and "\n" not in line


def test_slow_clients_are_given_up(monkeypatch):
    monkeypatch.setattr(guard, "READ_SECONDS", 0.3)
    body = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    again = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHo"
    with serving(guard.guarded(ROUTES)) as port:
        for sent, answer in (
            (b"", b""),
            (b"GET / HTTP/1.1\r\nHo", b""),
            (body, b"HTTP/1.1 408"),
            (again, b"HTTP/1.1 200"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(sent)
                received = b""
                while data := connection.recv(10_000):  # until it is closed from there
                    received += data
                assert received.startswith(answer) and bool(received) == bool(answer)


def test_with_a_token_nobody_is_answered_without_it(private_port):
    assert asked(private_port)[0] == 401
    for given in ("", "x" * 16, TOKEN[:-1], "é"):
        assert asked(private_port, cookie=f"{COOKIE}={given}".encode().decode("latin-1"))[0] == 401
    assert asked(private_port, "POST", path=f"/?token={TOKEN}", body={})[0] == 401
    assert asked(private_port, authorization=f"Bearer {TOKEN}")[0] == 200
    assert asked(private_port, host="any.name", cookie=f"a=b; {COOKIE}={TOKEN}")[0] == 200
    assert asked(private_port, cookie=f"{COOKIE}={TOKEN}", origin="http://evil.example")[0] == 403


def test_the_token_moves_from_the_address_into_a_cookie_of_this_page(private_port):
    status, _, headers = asked(private_port, path=f"//evil.example?a=b&token={TOKEN}")
    assert (status, headers["location"]) == (303, "/evil.example?a=b")
    assert headers["set-cookie"].startswith(f"{COOKIE}={TOKEN}; HttpOnly")


def test_another_address_needs_to_be_said_public_and_gets_a_token():
    with pytest.raises(UserError, match=r"host 0\.0\.0\.0: others could use this page; give --public"):
        guard.place("0.0.0.0", 7860, False, None)
    with pytest.raises(UserError, match="token: expected 16 letters"):
        guard.place("0.0.0.0", 7860, True, "short")
    first, second = guard.place("127.0.0.1", 7860, True, None), guard.place("0.0.0.0", 7860, True, None)
    assert first.host == "0.0.0.0" and first.token and second.token and first.token != second.token
    assert guard.place("::1", 0, False, None).url(5) == "http://[::1]:5/"


def test_a_port_in_use_is_said_in_one_line(port):
    with pytest.raises(ResourceError, match=rf"127\.0\.0\.1, port {port}: Address already in use; give another"):
        guard.run(guard.guarded(ROUTES), guard.Place(port=port))
    with pytest.raises(UserError, match="port must be from 0"):
        guard.Place(port=65_536)


def test_a_fault_of_ours_is_one_line_and_its_traceback_is_kept(monkeypatch, tmp_path, capfd):
    async def fault(_: Request) -> JSONResponse:
        raise ZeroDivisionError("secret\nand more")

    monkeypatch.chdir(tmp_path)
    with serving(guard.guarded([Route("/", fault)])) as port:
        status, body, _ = asked(port)
    assert status == 500 and b"secret" not in body
    out, err = capfd.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("error: ZeroDivisionError: and more (a fault of")
    assert "in fault" in (tmp_path / "pixelspace-error.log").read_text()
