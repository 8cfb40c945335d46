"""Timing implementations against one another: taken in turns, warmed up, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Shorter samples are mostly clock and call overhead, so fast functions are called several times per sample.
SAMPLE_SECONDS = 2e-3


def milliseconds(seconds: float) -> str:
    """Three digits, and no exponent."""
    ms = 1e3 * seconds
    return f"{ms:,.0f} ms" if ms >= 100.0 else f"{ms:.3g} ms"


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of the samples and the values below which 20% and 80% of them lie."""

    p50: float
    p20: float
    p80: float
    samples: int


def interleave(functions: dict[str, Callable[[], object]], seconds: float, at_least: int = 5) -> dict[str, Timing]:
    """Time the functions for about ``seconds`` in all, one sample of each after the other (A B A B ...).

    What slows the machine down then slows all of them. Each is called twice before anything is measured.
    """
    repeats = {}
    for name, function in functions.items():
        function()
        once = _sample(function, 1)
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(once, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < at_least:
        for name, function in functions.items():
            samples[name].append(_sample(function, repeats[name]))
    return {name: _summary(values) for name, values in samples.items()}


def _sample(function: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)], len(ordered))
