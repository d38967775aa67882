"""The C library keeps freed memory, so that new tensors need no fresh pages."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from stylegan2_ada.memory import keep_freed_memory

def page_faults():
    for _ in range(10):
        torch.ones(16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

freed = page_faults()
assert keep_freed_memory()
print(freed, page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_kept_memory_is_used_again():
    """Page faults of making a tensor of 64 MiB five times, before and after."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    freed, kept = map(int, done.stdout.split())
    assert kept * 10 < freed
