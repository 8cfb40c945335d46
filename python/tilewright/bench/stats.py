"""What samples that were taken in turns say: ratios with their uncertainty, and how a cost grows with a size."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Resamplings of a bootstrap. The ends of a 95% interval are then good to a tenth of its width.
RESAMPLES = 1000


@dataclass(frozen=True)
class Ratio:
    """value, and the ends of its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """How many times ``a`` is ``b``: the median of a[i] / b[i], of samples that were taken one right after the other.

    What slowed the machine down for a while is in both of a pair. The interval is the percentile bootstrap's (Efron
    1979) over pairs, from fixed random numbers.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"pairs are needed, got {len(a)} and {len(b)} samples")
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    draw = random.Random(0)
    return _with_interval(statistics.median(ratios), lambda: statistics.median(draw.choices(ratios, k=len(ratios))))


def ratio_of_ratios(
    before: tuple[Sequence[float], Sequence[float]], after: tuple[Sequence[float], Sequence[float]]
) -> Ratio:
    """The paired ratio of ``after`` over that of ``before``: two measurements, each against its own yardstick."""
    pairs = [[x / y for x, y in zip(*side, strict=True)] for side in (before, after)]
    draw = random.Random(0)

    def resampled() -> float:
        old, new = (statistics.median(draw.choices(p, k=len(p))) for p in pairs)
        return new / old

    old, new = (statistics.median(p) for p in pairs)
    return _with_interval(new / old, resampled)


def unpaired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """median(a) / median(b), of samples from different times, such as two result files hold."""
    if not a or not b:
        raise ValueError("samples are needed on both sides")
    draw = random.Random(0)

    def resampled() -> float:
        return statistics.median(draw.choices(a, k=len(a))) / statistics.median(draw.choices(b, k=len(b)))

    return _with_interval(statistics.median(a) / statistics.median(b), resampled)


def _with_interval(value: float, resampled: Callable[[], float]) -> Ratio:
    found = sorted(resampled() for _ in range(RESAMPLES))
    return Ratio(value, found[round(0.025 * (RESAMPLES - 1))], found[round(0.975 * (RESAMPLES - 1))])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


@dataclass(frozen=True)
class Growth:
    """cost ~ factor * size ** exponent, fitted to so many points; error: the exponent's standard error."""

    exponent: float
    factor: float
    error: float
    points: int

    def __str__(self) -> str:
        return f"^{self.exponent:.2f} ± {self.error:.2f}"


def fit_growth(sizes: Sequence[float], costs: Sequence[float]) -> Growth | None:
    """The least squares line through (log size, log cost); None for fewer than 3 points, or a cost of 0."""
    if len(sizes) < 3 or len(sizes) != len(costs) or min(costs) <= 0.0 or min(sizes) <= 0.0:
        return None
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    slope, intercept = statistics.linear_regression(x, y)
    spread = sum((v - statistics.fmean(x)) ** 2 for v in x)
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return Growth(slope, math.exp(intercept), math.sqrt(residual / (len(x) - 2) / spread), len(x))
