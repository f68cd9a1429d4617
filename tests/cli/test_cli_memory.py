"""Training in less memory than it needs."""

import subprocess
import sys

import pytest

GIB = 1 << 20  # of KiB, which `ulimit` counts in


def train(out, *settings):
    """A process that may have little more memory than PyTorch takes to start."""
    command = [sys.executable, "-m", "pixelspace", "train", "hdit-demo", "--out", str(out), "--quiet", "--threads", "1"]
    changes = ("stages.0.batch=2048", "stages.0.images=2048", "stages.0.precision=fp32", *settings)
    command += [part for setting in changes for part in ("--set", setting)]
    limited = ["bash", "-c", f'ulimit -v {4 * GIB}; exec "$@"', "bash", *command]
    return subprocess.run(limited, capture_output=True, text=True)


@pytest.mark.slow
def test_memory_that_ends_is_told_in_a_line_with_ways_out(tmp_path):
    ran = train(tmp_path / "run")
    assert ran.returncode == 6
    (said,) = ran.stderr.splitlines()
    assert said.startswith("error: stage 'train': out of memory: a step holds ")
    assert "activations of 2,048 images at once" in said
    assert said.count("--set stages.*.") >= 2 and said.endswith("or share it among more devices (torchrun)")
