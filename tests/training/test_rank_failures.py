"""A rank that fails, dies or hangs ends all of them within the bound, and each says which it was. Real processes."""

import json
import signal
import socket
import time

import pytest

from tests.training.test_parallel import started

ALIVE = 120  # seconds in which ranks must have started


def job(out, **given) -> str:
    return json.dumps([{"out": str(out), "recipe": "hdit", "set": {"images": 80_000}, **given}])


def wait_for_steps(out) -> None:
    """Until training is on its way."""
    until = time.monotonic() + ALIVE
    while time.monotonic() < until:
        if any(path.stat().st_size > 2000 for path in out.glob("*/metrics.jsonl")):
            return
        time.sleep(0.05)
    pytest.fail("no step was logged")


def ended(ranks, seconds: float) -> list[tuple[int, str]]:
    """How each rank ended, and its standard error."""
    until = time.monotonic() + seconds
    found = []
    try:
        for one in ranks:
            _, errors = one.communicate(timeout=max(until - time.monotonic(), 1))
            found.append((one.returncode, errors))
    finally:
        put_down(ranks)
    return found


def put_down(ranks) -> None:
    for one in ranks:
        one.kill()
        one.communicate()


@pytest.fixture
def two(tmp_path):
    ranks = started(2, job(tmp_path / "run"), "5")
    wait_for_steps(tmp_path / "run")
    yield ranks
    put_down(ranks)


def test_a_killed_rank_ends_the_others_and_is_named(two):
    two[1].kill()
    (code, errors), (killed, _) = ended(two, 30)
    assert killed == -signal.SIGKILL
    assert code == 7
    (line,) = [one for one in errors.splitlines() if one.startswith("error: ")]
    assert line == "error: rank 0: stopped because of rank 1: died or hangs, no sign of life since"


def test_a_rank_that_hangs_ends_the_others_after_the_stated_patience(two):
    two[1].send_signal(signal.SIGSTOP)
    _, errors = two[0].communicate(timeout=5 + 35)
    assert two[0].returncode == 7
    (line,) = [one for one in errors.splitlines() if one.startswith("error: ")]
    assert line.startswith("error: rank 0: stopped because of rank 1: ")


def test_a_stop_that_one_rank_is_asked_for_stops_all_with_a_checkpoint(two, tmp_path):
    two[1].send_signal(signal.SIGTERM)
    assert [code for code, _ in ended(two, 60)] == [75, 75]
    assert list((tmp_path / "run").glob("*/checkpoints/step-*/MANIFEST.json"))


def test_a_rank_that_fails_leaves_its_line_to_the_others(tmp_path):
    exact = {"images": 80, "reduction": "exact"}
    apart = [job(tmp_path / "run", set={"images": 80}), job(tmp_path / "run", set=exact, shard="full")]
    ranks = started(2, apart)
    found = ended(ranks, ALIVE)
    assert [code for code, _ in found] == [7, 2]
    assert "stopped because of rank 1: stage 'train': reduction 'exact' needs whole gradients" in found[0][1]
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_ranks_of_different_recipes_stop_before_anything_is_written(tmp_path):
    apart = [job(tmp_path / "run", set={"images": 80}), job(tmp_path / "run", set={"images": 160})]
    found = ended(started(2, apart), ALIVE)
    assert [code for code, _ in found] == [2, 2]
    lines = [line for _, errors in found for line in errors.splitlines()]
    assert lines == ["error: rank 1 has another recipe than rank 0: stages.0.images is 160, not 80"]


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (first, _) = ranks = started(2, job(tmp_path / "run"), "5", port=port)
        _, errors = first.communicate(timeout=ALIVE)
        put_down(ranks)
    assert first.returncode == 6
    line = [one for one in errors.splitlines() if one.startswith("error: ")][-1]
    assert f"cannot meet the others at 127.0.0.1:{port}: the port is in use; take another MASTER_PORT" in line
