"""Timing on a GPU, by its own events."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

#: More than any cache of a GPU holds.
FLUSH_BYTES = 512 * 2**20

#: Samples of short functions have several calls, for about this long; events resolve half a microsecond.
SAMPLE_SECONDS = 200e-6
MOST_CALLS = 50

#: A clock no GPU passes: a pause of so many cycles is never shorter than it should be.
_CYCLES_PER_SECOND = 2.5e9


class DeviceTimer:
    """Seconds that the device spends on a function, without the time that launching it takes.

    The device pauses in front of each sample until everything is in its queue. cold: the caches hold nothing of the
    function's data when it starts, and a sample is one call; otherwise what an earlier call left there stays.
    """

    def __init__(self, device: torch.device | str = "cuda", cold: bool = False) -> None:
        self._device = torch.device(device)
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self._device) if cold else None
        self._launch_seconds = 0.0

    def plan(self, function: Callable[[], object]) -> int:
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        function()
        launched = time.perf_counter()
        torch.cuda.synchronize(self._device)
        done = time.perf_counter()
        # One pause for all functions of a comparison: the longest.
        self._launch_seconds = max(self._launch_seconds, launched - start)
        if self._flush is not None:
            return 1
        once = max(self.sample(function, 1) if done - start < SAMPLE_SECONDS else done - start, 1e-6)
        return min(max(1, round(SAMPLE_SECONDS / once)), MOST_CALLS)

    def sample(self, function: Callable[[], object], calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        if self._flush is not None:
            self._flush.zero_()
        torch.cuda._sleep(int(_CYCLES_PER_SECOND * (2e-5 + 1.5 * self._launch_seconds * calls)))
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return 1e-3 * milliseconds / calls


def poison(like: tuple[torch.Tensor, ...]) -> None:
    """Fill the memory that the next results of these shapes will lie in with NaN, as far as torch reuses it.

    What a kernel leaves unwritten would otherwise hold an earlier call's right numbers.
    """
    blocks = [torch.full_like(t, torch.nan) for t in like if t.is_floating_point()]
    del blocks
