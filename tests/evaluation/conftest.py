"""What tests of networks from local folders share."""

import socket
from pathlib import Path

import pytest


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may ask the network."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with tiny/clip, tiny/dinov2, tiny/blip and tiny/instructblip."""
    from tests.evaluation import tiny_models  # transformers takes seconds to import

    weights = tmp_path_factory.mktemp("weights")
    for make in (tiny_models.clip, tiny_models.dinov2, tiny_models.blip, tiny_models.instructblip):
        make(weights / "tiny" / make.__name__)
    return weights


@pytest.fixture(scope="session")
def usual(tmp_path_factory: pytest.TempPathFactory):
    """The report of one process, without a stop."""
    from tests.evaluation.judged import judged

    report = judged(tmp_path_factory.mktemp("usual"))
    assert report is not None
    return report
