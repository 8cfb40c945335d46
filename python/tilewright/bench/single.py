"""One provider of a call at a time, for timers that are not ours: pytest-benchmark's and other projects'."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..registry import unavailable
from . import items
from .device import FLUSH_BYTES
from .measure import OURS, Bench, Built, Function, Item, build, check, flush_caches
from .peers import all_peers


class NotMeasured(Exception):
    """A provider that is not to be timed. status: "refused", "missing", "out of memory", "raised" or "wrong"."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status


def backends_on(device: str) -> tuple[str, ...]:
    """Tilewright's backends that work here and whose speed on this device means anything; else the reference."""
    kernels = ("triton", "cuda") if device == "cuda" else ("cpu",)
    return tuple(b for b in kernels if unavailable(b) is None) or ("reference",)


def default_shapes(device: str) -> str:
    return "cpu" if device == "cpu" else "gpu"


def bench_of(device: str, shapes: str | None = None) -> Bench:
    return Bench(device, backends_on(device), shapes or default_shapes(device))


def providers(op: str, bench: Bench) -> tuple[str, ...]:
    """Tilewright's backends, then every peer that exists for the device, installed or not."""
    return (*(OURS + b for b in bench.backends), *(p.name for p in all_peers()[op] if bench.device in p.devices))


def items_of(op: str, shapes: str, mode: str | None = None) -> list[Item]:
    """The op's calls of the set; with a mode each of its sizes once, in that mode (not for kvcache_attention, which has
    a forward only)."""
    if mode is None:
        return list(items.OPS[op](shapes))
    module = {"attention": items.attention, "varlen_attention": items.varlen, "softmax": items.softmax}
    of: Any = {**module, "ffn": items.ffn}[op]
    return [of.item(mode, shape) for shape in dict.fromkeys(shape for _, shape in of.SETS[shapes]())]


@dataclass(frozen=True)
class Checked:
    """A provider that was right. error: the distance of its result from float64."""

    function: Function
    error: float


class Call:
    """An item whose inputs are made when the first provider is asked for, and shared by all of them."""

    def __init__(self, item: Item, bench: Bench) -> None:
        self.item, self.bench = item, bench
        self._last: Any = None

    @functools.cached_property
    def built(self) -> Built:
        return build(self.item, self.bench)

    def checked(self, provider: str) -> Checked:
        """Make the provider's function, and hold its result against float64. NotMeasured if it is not to be timed."""
        if provider not in self.built.providers:
            raise NotMeasured("refused", f"there is no {provider!r} for {self.item.facts['op']} on {self.bench.device}")
        row, function, result = check(self.item, self.built, provider, self._last)
        if function is None:
            raise NotMeasured(row["status"], row["reason"])
        self._last = result
        return Checked(function, row["error"])

    def flush(self) -> Callable[[], object] | None:
        """What empties the caches, to be called before each sample; None where the call is measured with warm ones."""
        if not self.item.cold or self.bench.shapes == "tiny":
            return None
        if self.bench.device == "cpu":
            return flush_caches().zero_
        return _device_buffer(self.bench.device).zero_

    def synchronized(self, function: Function) -> Function:
        """On a GPU with waiting until its work is done, so that a clock on the wall can time it."""
        if self.bench.device == "cpu":
            return function

        def call() -> None:
            function()
            torch.cuda.synchronize()

        return call


@functools.cache
def _device_buffer(device: str) -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
