"""The commands that pages start on several devices, really started on two processes."""

import os
import subprocess
import sys

import pytest

from tests.docs.documented import ROOT, blocks, commands, smaller

PAGE = ROOT / "docs/tutorials/many-gpus.md"


@pytest.mark.slow
def test_what_the_page_starts_by_torchrun_runs_on_two_processes(home):
    shell = (block for block in blocks(PAGE.read_text(encoding="utf-8")) if block.kind == "shell")
    started = [words for block in shell for words in commands(block.text) if words[0] == "torchrun"]
    assert len(started) == 4
    for words in started:
        at = words.index("pixelspace") + 1
        command = [sys.executable, "-m", "torch.distributed.run", *words[1:at], *smaller(words[at:])]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert ended.returncode == 0, ended.stderr
