"""Timing implementations against one another: taken in turns, warmed up, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

#: Shorter samples are mostly clock and call overhead, so fast functions are called several times per sample.
SAMPLE_SECONDS = 2e-3


def milliseconds(seconds: float) -> str:
    """Three digits, and no exponent."""
    ms = 1e3 * seconds
    return f"{ms:,.0f} ms" if ms >= 100.0 else f"{ms:.3g} ms"


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of the samples and the values below which 20% and 80% of them lie.

    values: the samples in the order in which they were taken; those of one comparison belong together.
    """

    p50: float
    p20: float
    p80: float
    samples: int
    values: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "values": [float(f"{v:.5g}") for v in self.values]}


class ProviderFailed(Exception):
    """One of the functions that are timed raised ``problem``."""

    def __init__(self, provider: str, problem: Exception) -> None:
        super().__init__(f"{provider}: {problem}")
        self.provider, self.problem = provider, problem


Result = TypeVar("Result")


class Timer(Protocol):
    """How one function is timed."""

    def plan(self, function: Callable[[], object]) -> int:
        """How many calls a sample of it has. The function has been called before."""
        ...

    def sample(self, function: Callable[[], object], calls: int) -> float:
        """Seconds of one call, from so many of them."""
        ...


class WallTimer:
    """Seconds on the wall. synchronize: waits for what was launched, where calls return before their work is done.

    between: runs before each sample, which then is one call.
    """

    def __init__(
        self, synchronize: Callable[[], object] | None = None, between: Callable[[], object] | None = None
    ) -> None:
        self._synchronize, self._between = synchronize, between

    def plan(self, function: Callable[[], object]) -> int:
        if self._between is not None:
            return 1
        return max(1, round(SAMPLE_SECONDS / max(self.sample(function, 1), 1e-9)))

    def sample(self, function: Callable[[], object], calls: int) -> float:
        if self._between is not None:
            self._between()
        if self._synchronize is not None:
            self._synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        if self._synchronize is not None:
            self._synchronize()
        return (time.perf_counter() - start) / calls


def interleave(
    functions: Mapping[str, Callable[[], object]],
    seconds: float,
    at_least: int = 5,
    timer: Timer | None = None,
    announce: Callable[[str], None] = lambda name: None,
    warm: bool = True,
    near: Callable[[dict[str, float]], Iterable[str]] | None = None,
) -> dict[str, Timing]:
    """Time the functions for about ``seconds`` in all, one sample of each after the other (A B A B ...).

    What slows the machine down then slows all of them. Each is called twice before anything is measured; without warm
    once, for functions that have been called already. ProviderFailed names the one that raised. timer: the time on the
    wall, if not given. announce: is told whose turn it is. near: told the shortest time of each, answers those that go
    on being timed; the others have the least number of samples, and the seconds are not theirs.
    """
    timer = timer or WallTimer()

    def guarded(name: str, step: Callable[[], Result]) -> Result:
        announce(name)
        try:
            return step()
        except Exception as problem:
            raise ProviderFailed(name, problem) from problem

    calls = {}
    for name, function in functions.items():
        if warm:
            guarded(name, function)
        calls[name] = guarded(name, lambda f=function: timer.plan(f))  # type: ignore[misc]
    samples: dict[str, list[float]] = {name: [] for name in functions}

    def turn(names: Iterable[str]) -> None:
        for name in names:
            samples[name].append(guarded(name, lambda n=name: timer.sample(functions[n], calls[n])))  # type: ignore[misc]

    end = time.perf_counter() + seconds
    for _ in range(at_least):
        turn(functions)
    going_on = list(functions)
    if near is not None and functions:
        chosen = set(near({name: min(values) for name, values in samples.items()}))
        going_on = [name for name in functions if name in chosen]
        end = time.perf_counter() + seconds
    while going_on and time.perf_counter() < end:
        turn(going_on)
    return {name: _summary(values) for name, values in samples.items()}


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)
    last = len(ordered) - 1
    quantiles = statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)]
    return Timing(*quantiles, len(ordered), tuple(values))
