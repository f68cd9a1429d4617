"""The page's answers, asked for without a browser: what is there, and nothing else, whatever is asked."""

import asyncio
import sys
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelspace.serving.watch import PAGE, watching
from pixelspace.training.log import Metrics
from tests.serving.watched import draw_samples, make_run, stage_of, train_rows

TOKEN = "0123456789abcdefg"


class Client:
    """Asks an application as a browser on the same machine does."""

    def __init__(self, app):
        self.app = app

    def get(self, path: str, **headers: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7861") as client:
                return await client.get(path, headers={key.replace("_", "-"): text for key, text in headers.items()})

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("watched") / "runs"
    recipe = make_run(root / "one")
    stage = stage_of(root / "one", recipe)
    train_rows(Metrics(stage, []), range(1, 5))
    draw_samples(stage, 4, levels=(16, 8))
    (root.parent / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    (stage / "samples" / "0000000008.png").symlink_to(root.parent / "secret.png")
    (stage / "samples" / "0000000012.png").write_bytes(b"<script>alert(1)</script>")
    return root


@pytest.fixture(scope="module")
def client(root) -> Client:
    return Client(watching(root))


@pytest.fixture(scope="module")
def run(client) -> str:
    [run] = client.get("/runs").json()["runs"]
    return f"/runs/{run['id']}"


def test_runs_stages_settings_and_sheets_are_answered(client, run, root):
    stage = client.get(f"{run}/stages/0").json()
    assert stage["train"]["images"] == [4, 8, 12, 16] and stage["samples"][0]["levels"] == ["", "8"]
    assert dict(client.get(f"{run}/settings").json())["stages.0.batch"] == "4"
    sheet = client.get(f"{run}/stages/0/samples/4?level=8")
    assert sheet.headers["content-type"] == "image/png"
    assert sheet.content == (root / "one/00-train/samples/0000000004_8.png").read_bytes()


def test_the_page_and_its_parts_are_answered_with_no_right_to_run_anything_else(client):
    for path in PAGE:
        answer = client.get(path)
        assert answer.status_code == 200 and "script-src 'self'" in answer.headers["content-security-policy"]
    assert "<script>" not in client.get("/").text and "style=" not in client.get("/").text


def test_an_answer_that_is_known_is_not_sent_again(client, run, root):
    first = client.get(f"{run}/stages/0")
    again = client.get(f"{run}/stages/0", if_none_match=first.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")
    train_rows(Metrics(root / "one" / "00-train", []), [4])
    now = client.get(f"{run}/stages/0", if_none_match=first.headers["etag"])
    assert now.status_code == 200 and now.json()["attempt"] == first.json()["attempt"] + 1


def test_a_sheet_that_is_a_link_or_no_picture_is_not_there(client, run):
    listed = [one["images"] for one in client.get(f"{run}/stages/0").json()["samples"]]
    assert listed == [4, 12]
    for images in (8, 12, 16):
        assert client.get(f"{run}/stages/0/samples/{images}").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../../etc/passwd",
        "/runs/%2e%2e%2f%2e%2e%2fetc%2fpasswd/settings",
        "{run}/stages/-1",
        "{run}/stages/99",
        "{run}/stages/٣",
        "{run}/stages/0x0",
        "{run}/stages/99999999999999999999",
        "{run}/stages/0/samples/..%2F..%2F..%2Fsecret",
        "{run}/stages/0/samples/4?level=..%2F..%2F..%2Fsecret",
        "{run}/stages/0/samples/4?level=%00",
        "{run}/stages/0/samples/0000000000004?level=",
        "/watch.py",
        "/watch_files.py",
        "/static/watch.html",
        "//etc/passwd",
    ],
)
def test_what_is_not_there_is_not_found(client, run, path):
    answer = client.get(path.format(run=run))
    assert answer.status_code == 404 and set(answer.json()) == {"error"}


def test_other_names_other_sites_and_those_without_the_token_see_nothing(client, root):
    assert client.get("/runs", host="evil.example").status_code == 421
    assert client.get("/runs", origin="http://evil.example").status_code == 403
    public = Client(watching(root, TOKEN))
    assert public.get("/runs").status_code == 401
    assert public.get("/runs", authorization=f"Bearer {TOKEN}").status_code == 200


opened: list[str] | None = None


def _note(event: str, arguments: tuple) -> None:
    if opened is not None and event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], str | Path):
        opened.append(str(arguments[0]))  # but for what is open already, and only gets another name


PARTS = st.one_of(
    st.sampled_from(["runs", "stages", "samples", "settings", "0", "4", "..", "etc", "passwd", ""]),
    st.text(max_size=12),
)


@pytest.fixture(scope="module")
def audited() -> None:
    sys.addaudithook(_note)  # which stays until the process ends


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PARTS, max_size=6), level=st.text(max_size=12), known=st.integers(0, 6))
def test_whatever_is_asked_no_file_elsewhere_is_opened(audited, client, run, root, parts, level, known):
    begun = [*run.split("/")[1:], "stages", "0", "samples", "4"][:known]
    global opened
    opened = []
    try:
        path = "/".join(quote(part, safe="") for part in [*begun, *parts])
        answer = client.get(f"/{path}?level={quote(level)}")
    finally:
        found, opened = opened, None
    assert answer.status_code in (200, 304, 404, 414)
    inside = str(root.resolve())
    assert [one for one in found if not (one == inside or one.startswith(f"{inside}/"))] == []
