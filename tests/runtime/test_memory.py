import platform
import resource
import subprocess
import sys

import pytest

from lib.runtime import memory

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from lib.runtime.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
values = np.ones(2**24)  # 128 MiB
del values
print(Path("/proc/self/statm").read_text().split()[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    n_pages = {}
    for name in ("kept", "as it comes"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=True
        )
        n_pages[name] = int(done.stdout)
    n_more_bytes = (n_pages["kept"] - n_pages["as it comes"]) * resource.getpagesize()
    assert n_more_bytes > 100 * 2**20


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())  # a C library without mallopt
    memory.keep_freed_memory()
