"""The C library keeps freed memory, so that new tensors need no fresh pages."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from stylegan2_ada.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for _ in range(10):
    torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    """Page faults of making a tensor of 64 MiB five times."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_kept_memory_is_used_again():
    assert page_faults(keep=True) * 10 < page_faults(keep=False)
