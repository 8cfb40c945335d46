"""The calls of torch.cuda that checks need beside ordinary ones; and the same on a CPU, for rehearsals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .run import REHEARSAL

#: Cycles that the device pauses for, some 25 ms: what is launched meanwhile on another stream is done long before.
PAUSE = 50_000_000


class Gpu:
    name = "cuda"

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    @contextmanager
    def other_stream(self) -> Iterator[None]:
        """Not the default one, behind a pause."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(PAUSE)
            yield
        stream.synchronize()

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What replays the function's launches, and its results, which each replay writes anew."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function()
        return graph.replay, results

    @contextmanager
    def profiled(self) -> Iterator[None]:
        """A profiler that was told to wait for it sees what is launched inside."""
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        yield
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


class Cpu:
    """Nothing is asynchronous here. A replay of a captured function is another call of it."""

    name = "cpu"

    def synchronize(self) -> None:
        pass

    @contextmanager
    def other_stream(self) -> Iterator[None]:
        yield

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        results = function()

        def replay() -> None:
            for name, t in function().items():
                results[name].copy_(t)

        return replay, results

    @contextmanager
    def profiled(self) -> Iterator[None]:
        yield


def device() -> Gpu | Cpu:
    return Cpu() if REHEARSAL in os.environ else Gpu()
