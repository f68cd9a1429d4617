"""Training and drawing in less memory than they need."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pixelspace.cli.given import recipe_of
from pixelspace.model import Model
from pixelspace.model_config import ModelConfig
from tests.serving.served import asked

pytestmark = pytest.mark.slow

GIB = 1 << 20  # of KiB, which `ulimit` counts in


def limited(*arguments: str) -> list[str]:
    """A command that may have little more memory than PyTorch takes to start."""
    command = [sys.executable, "-m", "pixelspace", *arguments, "--threads", "1"]
    return ["bash", "-c", f'ulimit -v {4 * GIB}; exec "$@"', "bash", *command]


def test_memory_that_ends_is_told_in_a_line_with_ways_out(tmp_path):
    changes = ("stages.0.batch=2048", "stages.0.images=2048", "stages.0.precision=fp32")
    settings = [part for setting in changes for part in ("--set", setting)]
    command = limited("train", "hdit-demo", "--out", str(tmp_path / "run"), "--quiet", *settings)
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 6
    (said,) = ran.stderr.splitlines()
    assert said.startswith("error: stage 'train': out of memory: a step holds ")
    assert "activations of 2,048 images at once" in said
    assert said.count("--set stages.*.") >= 2 and said.endswith("or share it among more devices (torchrun)")


def resident(process: int) -> int:
    """The kB of memory that it has."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_drawing_that_memory_does_not_hold_is_told_and_the_next_one_drawn(tmp_path):
    stage = replace(recipe_of("hdit-demo").stages[-1], size=(256, 256))
    Model(ModelConfig.of(stage), stage.backbone.build().state_dict(), "cpu").save(tmp_path / "large")
    command = limited("serve", str(tmp_path / "large"), "--port", "0")
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split(":")[2].split("/")[0])

            def drawn(**settings) -> dict:
                body = {"model": "large", "seed": 1, "steps": 1, "sampler": "euler", **settings}
                status, answer, _ = asked(port, "POST", "/draw", body)
                assert status == 200
                lines = [json.loads(line) for line in answer.splitlines()]
                return next((line for line in lines if line["kind"] == "image"), lines[-1])

            first, held = drawn(), []
            for _ in range(4):
                said = "there is not enough memory; take fewer images or a smaller size"
                assert drawn(n=16, size=[512, 512]) == {"kind": "error", "error": said}
                assert drawn() == first
                held.append(resident(process.pid))
            assert max(held[2:]) < 1.05 * held[1]  # twice it may take more: where threads keep it differs
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "", "")
