"""The most memory that a call needs beside its inputs."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

#: glibc's mallopt: blocks above it come from the system one by one, and go back to it when they are freed.
_M_MMAP_THRESHOLD = -3
#: glibc's mallopt: so much free memory at the top of the heap goes back to the system.
_M_TRIM_THRESHOLD = -1
#: Where glibc's own rule ends up after a few large blocks were freed: twice this may stay at the top. Setting one of
#: the two ends that rule, and the other has to be set as well: calls timed later would get new pages each time.
_USUAL_THRESHOLD = 32 * 2**20


def peak_bytes(function: Callable[[], object], device: str) -> int | None:
    """Of one call, which has been made before. On a GPU by torch's allocator; on Linux by the process's own high-water
    mark, so that what kernels allocate beside torch counts as well; elsewhere None. Resolves about 0.1 MB there."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _can_reset():
        return None
    with _every_block_from_the_system():
        function()  # what it keeps between calls is there now
        # Blocks that were free before are taken again, and their pages stay.
        ctypes.CDLL(None).malloc_trim(0)
        before = _kilobytes("VmRSS")
        _RESET.write_text("5")  # the high-water mark starts again from here
        function()
        return max(0, _kilobytes("VmHWM") - before) * 1024


def _can_reset() -> bool:
    if sys.platform != "linux" or not _STATUS.is_file() or ctypes.util.find_library("c") is None:
        return False
    try:
        _RESET.write_text("5")
    except OSError:  # a container may forbid it
        return False
    return hasattr(ctypes.CDLL(None), "mallopt")


@contextmanager
def _every_block_from_the_system() -> Iterator[None]:
    """Freed memory that the C library keeps for the next call would hide what the next call needs."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
    libc.malloc_trim(0)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL_THRESHOLD)


def _kilobytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")
