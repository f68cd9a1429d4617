import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pixelspace.errors import ResourceError
from tests.training.checkpoint_faults import Fault, newest, save

PROGRAM = Path(__file__).with_name("checkpoint_faults.py")


@pytest.fixture
def memory(tmp_path):
    """A folder in memory if the machine has such: a killed process loses no more there, and syncs take no time."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder)


def campaign(*arguments):
    run = subprocess.run([sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_kill_at_any_call_of_a_save_loses_nothing_and_the_next_save_works(memory):
    found = campaign("every_call", memory)
    print(found)
    assert found["kills"] >= 100
    assert found["twice"] >= 30


def test_kills_at_random_moments_lose_nothing(tmp_path):
    found = campaign("random_moments", tmp_path / "checkpoints", 60)
    print(found)
    assert found["inside"] >= 10


ERRORS = {
    errno.EIO: ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"),
    errno.ENOSPC: ("mkdir", "open", "write", "fsync", "rename"),
    errno.EDQUOT: ("write", "fsync"),
    errno.EROFS: ("mkdir", "rename", "unlink", "rmdir"),
    errno.EMFILE: ("open",),
}


@pytest.mark.parametrize("code", ERRORS, ids=os.strerror)
def test_an_error_of_any_call_of_a_save_loses_nothing_and_the_next_save_works(memory, code):
    def fail(name, args, real):
        raise OSError(code, os.strerror(code))

    refused = 0
    for n in range(1000):
        folder = memory / str(n)
        save(folder, 1)
        with Fault(n, fail, ERRORS[code]) as fault:
            try:
                save(folder, 2)
            except ResourceError as error:
                refused += 1
                assert os.strerror(code) in str(error)
                assert str(folder) in str(error)
        assert newest(folder) in (1, 2)
        save(folder, 3)
        assert newest(folder) == 3
        assert os.listdir(folder) == ["step-00000003"]
        if fault.count <= n:
            break
    assert refused >= 3
