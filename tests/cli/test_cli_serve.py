"""`pixelspace serve` as a process: what it says, answers, and leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import WEIGHTS
from tests.serving.served import asked


def test_a_run_is_served_checkpoint_by_checkpoint_until_ctrl_c(run_folder, tmp_path):
    command = [sys.executable, "-m", "pixelspace", "serve", str(run_folder), "--checkpoints", "--port", "0"]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, cwd=tmp_path, env=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("open http://127.0.0.1:") and line.endswith("/ (Ctrl-C ends it)\n")
            port = int(line.split(":")[2].split("/")[0])
            models = [one["name"] for one in json.loads(asked(port, path="/offer")[1])["models"]]
            assert models == ["step-00000008", "step-00000004"]
            status, body, _ = asked(port, "POST", "/draw", {"model": models[1], "seed": 1})
            assert status == 200 and json.loads(body.splitlines()[-1])["kind"] == "done"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_one_line(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = cli("serve", WEIGHTS, "--port", str(port))
    assert (code, out) == (6, "")
    assert err == f"error: 127.0.0.1, port {port}: Address already in use; give another by --port (0: any free one)\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--host", "0.0.0.0"), 2, "host 0.0.0.0: others could use this page; give --public if that is meant"),
        (("--port", "70000"), 2, "port must be from 0 (any free one) to 65,535, found 70000"),
        (("--seconds", "0"), 2, "--seconds must be from 1 to 86,400, found 0"),
        (("--threads", "0"), 2, "--threads must be from 1 to 1,024, found 0"),
        (("--checkpoints",), 4, "holds no checkpoints"),
        (("--vae", "x"), 2, "vae: this model draws pixels without a VAE"),
        ((WEIGHTS,), 2, "the same model is named twice"),
    ],
)
def test_what_cannot_be_served_is_one_line(cli, arguments, code, said):
    found, out, err = cli("serve", WEIGHTS, *arguments)
    assert (found, out) == (code, "") and said in err and err.count("\n") == 1


def test_a_file_that_is_no_model_is_one_line(cli, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for name in ("photo.png", "absent"):
        code, out, err = cli("serve", tmp_path / name)
        assert (code, out) == (4, "") and name in err and err.count("\n") == 1


def test_a_token_of_the_environment_that_can_be_guessed_is_refused(cli, monkeypatch):
    monkeypatch.setenv("PIXELSPACE_TOKEN", "1234")
    code, _, err = cli("serve", WEIGHTS, "--public")
    assert code == 2 and "token: expected 16 letters" in err
