"""Memory of the process, as far as it decides over speed."""

import ctypes
import functools
import platform

# From malloc.h of glibc.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep what tensors on the CPU free, instead of handing it back to the system.

    glibc returns large blocks at once, and each new tensor then waits for the kernel to map and clear its pages:
    a third of the time of a forward and backward pass of G at 64 and 256 px. The process holds on to its peak memory in
    return. Does nothing where there is no glibc.

    Returns:
        Whether it took effect.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20, ARENA_MAX: 1}
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
