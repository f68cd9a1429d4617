"""The page's addresses over a real socket, with small models that really draw."""

import asyncio
import base64
import http.client
import io
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

from pixelspace.cli import main
from pixelspace.data.pictures import settings_in
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.serving import drawer, drawing, guard, turns
from pixelspace.serving.drawer import PAGE, page
from pixelspace.serving.offer import Offer, wanted
from tests.serving.conftest import WEIGHTS, untrained
from tests.serving.served import asked, serving

LONG = {"steps": 1000, "n": 1}  # seconds, if nobody cancels it


def lines(port: int, client: str = "", **settings) -> Iterator[dict]:
    """What the server says of a drawing, line by line; the connection is closed when nobody reads on."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps({"model": "classes", "seed": 0, **settings})
        connection.request("POST", "/draw", body, {"content-type": "application/json", "x-client": client})
        answer = connection.getresponse()
        if answer.status != 200:
            yield {"status": answer.status, "retry": answer.getheader("retry-after"), **json.loads(answer.read())}
            return
        for line in answer:
            yield json.loads(line)
    finally:
        connection.close()


def files(said: list[dict]) -> list[list[bytes]]:
    found = {one["image"]: [base64.b64decode(file["data"]) for file in one["files"]] for one in said if "files" in one}
    return [found[i] for i in range(len(found))]


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def idle(port: int, seconds: float = 10) -> float:
    """How long it takes until nothing is drawn any more."""
    began = time.monotonic()
    while json.loads(asked(port, path="/health")[1])["drawings"]:
        assert time.monotonic() - began < seconds
        time.sleep(0.01)
    return time.monotonic() - began


def test_the_page_is_its_files_and_no_other_can_be_asked_for(drawer_port):
    for path in PAGE:
        status, body, _ = asked(drawer_port, path=path)
        assert status == 200 and body
    html = asked(drawer_port)[1].decode()
    assert not re.search(r"https?://", html) and set(re.findall(r'(?:src|href)="(/[^"]*)"', html)) <= set(PAGE)
    for path in (
        "/../guard.py",
        "/%2e%2e/guard.py",
        "/draw.css/../guard.py",
        "/guard.py",
        "//etc/passwd",
        "/draw.js%00",
    ):
        assert asked(drawer_port, path=path)[0] == 404


def test_the_offer_says_of_each_model_what_it_takes(drawer_port):
    offer = json.loads(asked(drawer_port, path="/offer")[1])
    models = {one["name"]: one for one in offer["models"]}
    assert models["classes"]["num_classes"] and not models["classes"]["text"]
    assert [models[name]["guided"] for name in ("classes", "text", "pyramid")] == [True, True, False]
    assert models["text"]["text"] and models["text"]["problem"] == ""
    assert (models["pyramid"]["levels"], models["clips"]["frames"]) == (2, 16)
    assert models["lost"]["problem"] == "this model's text encoder is not at hand; the server needs --encoder"


def test_images_are_those_of_the_command_line_bit_for_bit(drawer_port, tmp_path):
    asked_for = {"n": 3, "seed": str(2**64 - 1), "label": 2, "steps": 5, "guidance": 1.5, "size": [16, 24]}
    drawn = [file for (file,) in files(list(lines(drawer_port, **asked_for)))]
    options = f"-n 3 --seed {2**64 - 1} --label 2 --steps 5 --guidance 1.5 --size 16 24 --quiet"
    assert main(["sample", str(WEIGHTS), "--out", str(tmp_path / "out"), *options.split()]) == 0
    assert len(drawn) == 3
    for number, file in enumerate(drawn):
        same = (tmp_path / f"out/{number:06d}.png").read_bytes()
        assert np.array_equal(pixels(file), pixels(same))
        assert {**settings_in(file), "model": WEIGHTS.name} == settings_in(same)


def test_every_step_is_told_with_the_time_left_and_the_estimate_as_an_image(drawer_port):
    said = list(lines(drawer_port, n=2, steps=7))
    steps = [one for one in said if one["kind"] == "step"]
    assert [one["done"] for one in steps] == list(range(1, 8))
    assert [one["part"] for one in steps] == pytest.approx([i / 7 for i in range(1, 8)])
    assert steps[-1]["left"] == 0 <= min(one["left"] for one in steps)
    assert [pixels(base64.b64decode(level)).shape for (level,) in steps[0]["previews"]] == [(16, 16, 3)] * 2
    assert said[-1]["kind"] == "done" and said[-1]["seconds"] > 0


def test_the_file_says_all_that_decides_the_image_and_no_path(drawer_port):
    (said,) = [
        one for one in lines(drawer_port, model="text", text="a cat ü", steps=2, seed=5) if one["kind"] == "image"
    ]
    settings = settings_in(base64.b64decode(said["files"][0]["data"]))
    assert said["settings"] == {**settings, "seed": "5"}
    expected = {"model": "text", "seed": 5, "image": 0, "of": 1, "text": "a cat ü", "negative": None, "steps": 2}
    assert {key: settings[key] for key in expected} == expected
    assert len(settings["weights"]) == 64 and "/" not in json.dumps(settings)


def test_a_prompt_that_is_cut_is_drawn_and_said_to_be_cut(drawer_port):
    note, *said = lines(drawer_port, model="text", text="a cat " * 100, steps=1)
    assert note["kind"] == "note" and note["note"].startswith(
        "the prompt has 601 tokens, and the model reads the first"
    )
    assert said[-1]["kind"] == "done"


def test_of_a_pyramid_every_level_is_shown_and_of_clips_all_frames(drawer_port):
    (levels,) = files(list(lines(drawer_port, model="pyramid", levels=True, steps=2)))
    assert [pixels(level).shape for level in levels] == [(32, 32, 3), (16, 16, 3)]
    (alone,) = files(list(lines(drawer_port, model="pyramid", steps=2)))
    assert np.array_equal(pixels(alone[0]), pixels(levels[0]))
    (clip,) = files(list(lines(drawer_port, model="clips", text="a cat", steps=2)))
    assert Image.open(io.BytesIO(clip[0])).n_frames == 16  # type: ignore[attr-defined]


def test_a_client_who_leaves_stops_the_drawing_within_a_step(drawer_port):
    said = lines(drawer_port, **LONG)
    assert next(said)["kind"] == "step"
    said.close()
    assert idle(drawer_port) < 1


def test_a_client_who_leaves_while_waiting_gives_the_place_up(drawer_port):
    on, waiting = lines(drawer_port, "a", **LONG), lines(drawer_port, "b", **LONG)
    next(on)
    assert next(waiting) == {"kind": "queued", "ahead": 1}
    waiting.close()
    behind = lines(drawer_port, "c", steps=1)
    assert next(behind) == {"kind": "queued", "ahead": 1}
    on.close()
    assert [one["kind"] for one in behind] == ["step", "image", "done"]
    idle(drawer_port)


def test_two_users_at_once_each_get_the_image_they_would_get_alone(drawer_port):
    both = [{"seed": seed, "steps": 12, "n": 2} for seed in (1, 2)]
    alone = [files(list(lines(drawer_port, **one))) for one in both]
    found: dict[int, list] = {}

    def user(number: int) -> None:
        found[number] = files(list(lines(drawer_port, str(number), **both[number])))

    users = [threading.Thread(target=user, args=(i,)) for i in range(2)]
    for one in users:
        one.start()
    for one in users:
        one.join()
    assert [found[0], found[1]] == alone


def test_more_than_the_queue_holds_is_told_to_come_back(drawer_port):
    on = [lines(drawer_port, f"{i}", **LONG) for i in range(turns.WAITING + 1)]
    for one in on:
        assert next(one)["kind"] in ("step", "queued")
    (full,) = lines(drawer_port, "another", steps=1)
    assert (full["status"], full["retry"]) == (429, "5") and "drawings are waiting already" in full["error"]
    began = time.monotonic()
    assert asked(drawer_port, path="/health")[0] == 200 and time.monotonic() - began < 0.5
    for one in reversed(on):
        one.close()
    idle(drawer_port)
    two = [lines(drawer_port, "one", **LONG) for _ in range(turns.EACH)]
    for one in two:
        next(one)
    (enough,) = lines(drawer_port, "one", steps=1)
    assert enough["status"] == 429 and "of yours are under way" in enough["error"]
    for one in two:
        one.close()
    idle(drawer_port)


def test_a_drawing_that_takes_too_long_is_ended_and_the_next_one_drawn(offer):
    with serving(page(offer, 0.2)) as port:
        said = list(lines(port, **LONG))
        assert said[-1]["kind"] == "error" and "longer than the 0.2 seconds" in said[-1]["error"]
        assert [one["kind"] for one in lines(port, steps=1)] == ["step", "image", "done"]


def test_previews_do_not_pile_up_for_a_client_who_is_behind(offer):
    def told(behind: bool) -> int:
        said: list[dict] = []
        asked = wanted({"model": "classes", "seed": 0, "n": 1, "steps": 3})
        drawing.Drawing(offer.of(asked), asked, 60, said.append, lambda: behind).run()
        assert [one["kind"] for one in said] == ["step"] * 3 + ["image", "done"]
        return sum("previews" in one for one in said)

    assert told(True) == 0 < told(False)


def test_a_client_who_takes_nothing_is_given_up(offer, monkeypatch):
    monkeypatch.setattr(drawer, "SEND_SECONDS", 0.2)
    app = drawer.Drawer(offer, 60)

    async def stalls() -> None:
        never = asyncio.Event()
        body = json.dumps({"model": "classes", "seed": 0, **LONG}).encode()
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            if not asked:
                await never.wait()
            return asked.pop()

        async def send(message: dict) -> None:
            if message["type"] == "http.response.body":
                await never.wait()

        scope = {"type": "http", "method": "POST", "path": "/draw", "headers": [], "query_string": b""}
        await (await app.draw(Request(scope, receive)))(scope, receive, send)
        while app.turns.turns:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(stalls(), 20))


def test_a_server_that_ends_drains_what_is_under_way_and_then_stops_it_without_a_word(offer, monkeypatch, capfd):
    monkeypatch.setattr(guard, "DRAIN_SECONDS", 1.5)
    with serving(page(offer, 60)) as port:
        short, long = lines(port, "a", steps=5), lines(port, "b", **LONG)
        assert next(short)["kind"] == "step" and next(long)["kind"] == "queued"
    assert list(short)[-1]["kind"] == "done"
    assert list(long)[-1]["kind"] in ("queued", "step")
    assert capfd.readouterr() == ("", "")


def test_an_image_that_is_not_finite_is_said_in_a_sentence_and_the_server_lives(drawer_port, offer):
    weight = next(offer.models["pyramid"].model.backbone.parameters())
    kept = weight.clone()
    weight.fill_(float("nan"))
    try:
        said = list(lines(drawer_port, model="pyramid", steps=1))
    finally:
        weight.copy_(kept)
    assert said[-1]["kind"] == "error" and "image 0 of seed 0 is not finite" in said[-1]["error"]
    assert list(lines(drawer_port, model="pyramid", steps=1))[-1]["kind"] == "done"


NASTY = [None, True, -1, 0, 1, 2, 3.5, 10**30, 2**63, "", "0", "a", "\0", "é" * 3000, "\u0301" * 999, [], [1], [16, 16]]
NASTY += [[0, 0], [16, -16], ["16", "16"], {}, {"type": "Wanted"}, {"a": {"b": [1]}}, [[]], "../../etc/passwd", 1e300]


def test_no_request_is_answered_with_a_fault_of_ours_or_kills_the_server(drawer_port):
    draw = random.Random(0)
    fields = ["model", "seed", "n", "size", "label", "text", "negative", "steps", "sampler", "guidance", "levels", "x"]
    good = {"model": "classes", "seed": 0, "steps": 1, "n": 1, "size": [16, 16]}
    seen = set()
    for _ in range(400):
        some = {name: draw.choice(NASTY) for name in draw.sample(fields, draw.choice((1, 1, 2, 4)))}
        tried = {"model": draw.choice(("classes", "text", "lost", "clips")), **good, **some}
        if tried.get("steps") is None or tried.get("n") not in (0, 1, 2, None):
            tried["steps"] = 1
        status, body, _ = asked(drawer_port, "POST", "/draw", tried)
        seen.add(status)
        if status == 200:
            assert json.loads(body.splitlines()[-1])["kind"] in ("done", "error"), tried
        else:
            line = json.loads(body)["error"]
            assert status == 422 and line and "\n" not in line and "Traceback" not in line, (tried, body)
    assert seen == {200, 422}
    for data in (draw.randbytes(size) for size in range(0, 3000, 60)):
        assert asked(drawer_port, "POST", "/draw", data)[0] == 422
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert asked(drawer_port, method, "/draw", {})[0] == 405
    assert asked(drawer_port, path="/health")[0] == 200


def test_a_file_that_is_gone_is_named_on_the_terminal_alone(capfd, tmp_path):
    lost = untrained("hdit-imagenet128-debug")
    offer = Offer({"lost": lost})
    assert offer.models["lost"].missing == ("", "")
    lost.config = replace(lost.config, codec=KLVAE(vae=str(tmp_path / "gone.pth")))
    told, why = Offer({"lost": lost}).models["lost"].missing
    assert told == "this model's VAE is not at hand; the server needs --vae" and "gone.pth" in why

    line = "the server cannot draw this now; its terminal says why"
    said: list[dict] = []
    drawing.Drawing(offer.models["lost"], wanted({"model": "lost"}), 60, said.append).run()
    assert said == [{"kind": "error", "error": line}]
    with serving(page(offer, 60)) as port:
        status, body, _ = asked(port, "POST", "/draw", {"model": "lost"})
    assert (status, json.loads(body)) == (503, {"error": line})
    out, err = capfd.readouterr()
    assert out == "" and [one.startswith("error: ") and "gone.pth" in one for one in err.splitlines()] == [True] * 2


@pytest.mark.slow
def test_memory_and_open_files_stay_what_they_are_over_thousands_of_drawings(drawer_port):
    def held() -> tuple[int, int]:
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]), len(list(Path("/proc/self/fd").iterdir()))

    def many(count: int) -> None:
        for i in range(count):
            said = lines(drawer_port, steps=3 if i % 3 else 50, n=2)
            if i % 3:
                assert list(said)[-1]["kind"] == "done"
            else:
                next(said)
                said.close()
        idle(drawer_port)

    many(300)
    memory, opened = held()
    many(3000)
    assert held()[0] < 1.05 * memory and held()[1] <= opened + 2
