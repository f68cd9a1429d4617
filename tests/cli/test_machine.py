import os
import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")

HELD = """
from pixelspace.cli import machine
def held():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
machine.prepare()
before, block = held(), bytearray(b"x" * (64 << 20))
del block
print(held() - before)
"""


def kept_of_64(**environment):
    """MiB of a freed block that stay with a process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", HELD]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**inherited, **environment})
    return int(ran.stdout)


@glibc
def test_freed_memory_stays_with_the_process():
    assert kept_of_64() >= 60


@glibc
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_whoever_sets_the_variables_is_asked_nothing(name):
    value = "glibc.malloc.trim_threshold=65536" if name == "GLIBC_TUNABLES" else "65536"
    assert kept_of_64(**{name: value}) <= 8


def test_threads_spin_as_long_as_the_environment_says(monkeypatch):
    from pixelspace.cli import machine

    monkeypatch.setattr(machine, "_keep_freed_memory", lambda: None)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    machine.prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    machine.prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
