"""What changed between two results of the benchmark, call by call.

Two files are from different hours, and the machine's speed is another. Peers tell: their code is the same. So where an
item's peers were timed on both sides, our ratio is taken against theirs (all of them, by geometric mean), and the plain
ratio is only shown. What the peers moved against one another, beyond what their samples explain, is how far the same
code drifts from run to run; each interval is widened by it.

A change is called one only if its interval lies beyond the threshold altogether. With hundreds of calls some 95%
intervals would do that by chance, so the intervals here hold together: each is widened (Bonferroni's correction) until
at most one comparison of results in twenty has any interval that misses, however many calls it has. Noise beyond that
costs small changes their verdict, and raises no alarm: what is slower, but not surely, has "no change shown".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .stats import Ratio, geometric_mean, paired_ratio, ratio_of_ratios, unpaired_ratio
from .summary import LEAST_BYTES, Result, Row, is_ours, is_roofline, median, read, times

#: Verdicts that fail a comparison, the worst first; then all of them in the order in which they are shown.
REGRESSIONS = ("broken", "slower", "more memory")
NO_CHANGE = "no change shown"
VERDICTS = (*REGRESSIONS, "faster", "fixed", NO_CHANGE, "another call", "only before", "only after", "not measured")

#: Fewer samples than this say nothing about their own spread.
LEAST_SAMPLES = 5

#: Growth of a peak of memory that is told from chance. On a CPU it is the process's, and runs of the same code, on a
#: busy machine, were up to 30 MB apart; on a GPU torch's allocator counts.
LEAST_GROWTH = {"cpu": 64 * 2**20}

#: An error against float64 that grows by this factor is mentioned, though it is within its limit.
ERROR_GROWTH = 2.0

Key = tuple[str, str]


@dataclass(frozen=True)
class Change:
    """One provider of one item. before, after: seconds of a call, None without a time.

    plain: after / before. against_peers: the same, over that of the item's peers. judged: the one of the two that the
    verdict is by, with the interval that all calls' intervals hold together by.
    """

    item: str
    provider: str
    verdict: str
    before: float | None = None
    after: float | None = None
    plain: Ratio | None = None
    against_peers: Ratio | None = None
    judged: Ratio | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        return self.verdict in REGRESSIONS

    def to_json(self) -> dict[str, Any]:
        ratios = {n: r and vars(r) for n, r in vars(self).items() if n in ("plain", "against_peers", "judged")}
        return {**vars(self), **ratios, "notes": list(self.notes)}


@dataclass(frozen=True)
class Comparison:
    """changes: of tilewright's providers, the worst first. peers: after / before of all others timed on both sides.

    drift: geometric mean of the peers' ratios. run_to_run: how far (one standard deviation of the logarithm) a peer
    moved against the others of its item, beyond its samples' spread. warnings: what differs besides the code.
    """

    threshold: float
    changes: tuple[Change, ...]
    peers: dict[Key, float]
    drift: float | None
    run_to_run: float
    warnings: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if c.is_regression)

    @property
    def resolution(self) -> float | None:
        """By how much (0.2 is 20%) a call must become slower so that half of the calls would have shown it."""
        spreads = [c.judged.high / c.judged.value for c in self.changes if c.judged is not None]
        return (1 + self.threshold) * median(spreads) - 1 if spreads else None

    def to_json(self) -> dict[str, Any]:
        peers = [{"item": i, "provider": p, "ratio": r} for (i, p), r in self.peers.items()]
        changes = [c.to_json() for c in self.changes]
        return {**vars(self), "resolution": self.resolution, "changes": changes, "peers": peers}


@dataclass(frozen=True)
class _Timed:
    """A provider of an item with times on both sides."""

    before: Row
    after: Row

    @property
    def ratio(self) -> float:
        return median(times(self.after)) / median(times(self.before))

    @property
    def variance(self) -> float:
        """Of the ratio's logarithm, by the samples of both sides."""
        return sum(_variance_of_median([math.log(t) for t in times(r)]) for r in (self.before, self.after))


def compare(before: Result, after: Result, threshold: float, paired: bool = False) -> Comparison:
    """threshold: 0.05 is 5%. paired: sample i of both sides was taken in the same round, which cancels the drift.

    ValueError if one is of a GPU and the other of a CPU, or if they have no call in common.
    """
    _same_device(before, after)
    old, new = _by_call(before.rows), _by_call(after.rows)
    if not {r["item"] for r in before.rows} & {r["item"] for r in after.rows}:
        raise ValueError("the two results have no call in common")
    both = {k: _Timed(old[k], new[k]) for k in old if k in new and _comparable(old[k], new[k])}
    ours = {k: t for k, t in both.items() if is_ours(t.before)}
    peers: dict[str, list[_Timed]] = {}
    for (item, _), timed in both.items():
        if not is_ours(timed.before):
            peers.setdefault(item, []).append(timed)
    run_to_run = _run_to_run(peers.values())
    least_growth = LEAST_GROWTH.get(after.settings.get("device", "cuda"), LEAST_BYTES)
    changes = []
    for key in dict.fromkeys([*old, *new]):
        if key in ours:
            of_item = [] if paired else peers.get(key[0], [])
            grown, notes = _other_growth(old[key], new[key], threshold, least_growth)
            change = _judge(ours[key], of_item, paired, threshold, run_to_run, len(ours))
            worse = grown and change.verdict != "slower"
            changes.append(replace(change, notes=notes, verdict="more memory" if worse else change.verdict))
        elif is_ours(old.get(key) or new[key]):
            changes.append(_untimed(key, old.get(key), new.get(key), before.rows, after.rows))
    if not changes:
        raise ValueError("neither result has a call of tilewright")
    changes.sort(key=lambda c: (VERDICTS.index(c.verdict), -abs(math.log(c.judged.value)) if c.judged else 0.0))
    ratios = {(i, t.before["provider"]): t.ratio for i, of_item in peers.items() for t in of_item}
    drift = geometric_mean(list(ratios.values())) if ratios else None
    warnings = differences(before, after)
    alone = sum(c.judged is not None and c.against_peers is None for c in changes)
    if alone and not paired:
        warnings.append(
            f"{alone} of {len(ours)} calls have no peer timed on both sides: the machine's drift is in them"
        )
    return Comparison(threshold, tuple(changes), ratios, drift, math.sqrt(run_to_run.value), tuple(warnings))


def read_checked(path: Path) -> Result:
    """summary.read, and a ValueError too if a row has not what is compared."""
    result = read(path)
    for row in result.rows:
        try:
            right = all(isinstance(row[n], str) for n in ("item", "provider", "status"))
            right = right and (row["status"] != "timed" or all(t > 0.0 for t in times(row)))
        except (KeyError, TypeError):
            right = False
        if not right:
            raise ValueError(f"{path}: a row of the result is damaged: {str(row)[:100]}")
    return result


def _by_call(rows: Iterable[Row]) -> dict[Key, Row]:
    return {(r["item"], r["provider"]): r for r in rows if not is_roofline(r["item"]) and r["provider"] != "all"}


def _comparable(old: Row, new: Row) -> bool:
    timed = old["status"] == new["status"] == "timed" and old.get("label") == new.get("label")
    return timed and min(len(times(old)), len(times(new))) >= LEAST_SAMPLES


def _against(ours: _Timed, peers: Sequence[_Timed]) -> Ratio | None:
    """Samples of one item were taken in turns, so each of ours belongs to one of every peer. A peer that is far behind
    has the first few alone: it counts where no other has more."""
    if not peers:
        return None
    counts = [min(len(times(t.before)), len(times(t.after))) for t in peers]
    near = [t for t, count in zip(peers, counts, strict=True) if 2 * count >= max(counts)]
    sides = []
    for side in ("before", "after"):
        own, *of_peers = (times(getattr(t, side)) for t in (ours, *near))
        sides.append((own, [geometric_mean(sample) for sample in zip(*of_peers, strict=False)]))
    pairs = [(own[: len(mean)], mean[: len(own)]) for own, mean in sides]
    return ratio_of_ratios(pairs[0], pairs[1])


def _variance_of_median(values: Sequence[float]) -> float:
    """Of a normal distribution's, whose width the median distance from the median gives: outliers do not count."""
    middle = median(values)
    width = 1.4826 * median([abs(v - middle) for v in values])
    return math.pi / 2 * width**2 / len(values)


@dataclass(frozen=True)
class _Variance:
    """Estimated with so many degrees of freedom."""

    value: float
    degrees: int

    def __add__(self, other: _Variance) -> _Variance:
        """Of a sum of two (Satterthwaite 1946)."""
        value = self.value + other.value
        parts = [v.value**2 / v.degrees for v in (self, other) if v.value > 0.0]
        return _Variance(value, int(value**2 / sum(parts)) if parts else self.degrees)


def _run_to_run(items: Iterable[Sequence[_Timed]]) -> _Variance:
    """Pooled over items with several peers: the variance of their ratios, less what samples explain. 0 where there are
    too few to tell."""
    squares, degrees, explained = 0.0, 0, 0.0
    for peers in items:
        logs = [math.log(t.ratio) for t in peers]
        mean = statistics.fmean(logs)
        squares += sum((v - mean) ** 2 for v in logs)
        degrees += len(logs) - 1
        explained += (len(logs) - 1) * statistics.fmean(t.variance for t in peers)
    return _Variance(max(0.0, squares - explained) / degrees if degrees >= LEAST_SAMPLES - 1 else 0.0, degrees)


def _judge(
    timed: _Timed, peers: Sequence[_Timed], paired: bool, threshold: float, run_to_run: _Variance, count: int
) -> Change:
    new, old = times(timed.after), times(timed.before)
    plain = paired_ratio(new, old) if paired else unpaired_ratio(new, old)
    against_peers = _against(timed, peers)
    used = against_peers or plain
    # As the 95% interval of a normal distribution.
    of_samples = _Variance((math.log(used.high / used.low) / (2 * 1.96)) ** 2, min(len(old), len(new)) - 1)
    of_runs = replace(run_to_run, value=run_to_run.value * (1 + 1 / len(peers) if against_peers else 1))
    variance = of_samples + of_runs
    spread = _quantile(1 - 0.025 / count, variance.degrees) * math.sqrt(variance.value)
    judged = Ratio(used.value, used.value * math.exp(-spread), used.value * math.exp(spread))
    slower, faster = judged.low > 1 + threshold, judged.high < 1 / (1 + threshold)
    verdict = "slower" if slower else "faster" if faster else NO_CHANGE
    row = timed.before
    return Change(row["item"], row["provider"], verdict, median(old), median(new), plain, against_peers, judged)


def _quantile(probability: float, degrees: int) -> float:
    """Student's t, by Peizer and Pratt's approximation (1968): within 2% from 4 degrees of freedom on."""
    z = statistics.NormalDist().inv_cdf(probability)
    return math.sqrt(degrees * math.expm1(z**2 * (degrees - 5 / 6) / (degrees - 2 / 3 + 0.1 / degrees) ** 2))


def _other_growth(old: Row, new: Row, threshold: float, least: int) -> tuple[bool, tuple[str, ...]]:
    """Whether the peak of memory grew past the threshold and by enough bytes; in words that, and an error that grew."""
    notes = []
    a, b = old.get("peak_bytes"), new.get("peak_bytes")
    grown = a is not None and b is not None and b > a * (1 + threshold) and b - a > least
    if a is not None and b is not None and (grown or (a > b * (1 + threshold) and a - b > least)):
        notes.append(f"peak memory {a / 1e6:.1f} -> {b / 1e6:.1f} MB")
    if (old.get("error") or 0.0) > 0.0 and (new.get("error") or 0.0) > ERROR_GROWTH * old["error"]:
        notes.append(f"error {old['error']:.1e} -> {new['error']:.1e}, within its limit of {new['limit']:.1e}")
    return grown, tuple(notes)


def _untimed(key: Key, old: Row | None, new: Row | None, olds: list[Row], news: list[Row]) -> Change:
    """What has not both times. Where an item failed as a whole, its row is of the provider "all"."""
    old, new = (
        row or next((r for r in rows if (r["item"], r["provider"]) == (key[0], "all")), None)
        for row, rows in ((old, olds), (new, news))
    )
    before, after = (median(times(r)) if r and r["status"] == "timed" else None for r in (old, new))
    if old is None or new is None:
        return Change(*key, "only after" if old is None else "only before", before, after)
    if "not reached" in (old["status"], new["status"]):
        return Change(*key, "not measured", before, after, notes=("the benchmark's time was over",))
    if before is not None and after is not None:
        if old.get("label") != new.get("label"):
            return Change(*key, "another call", before, after, notes=(f"{old.get('label')} -> {new.get('label')}",))
        return Change(*key, "not measured", before, after, notes=(f"fewer than {LEAST_SAMPLES} samples",))
    if before is not None:
        return Change(*key, "broken", before, None, notes=(f"{new['status']}: {new.get('reason', '')}",))
    if after is not None:
        return Change(*key, "fixed", None, after, notes=(f"it was: {old['status']}: {old.get('reason', '')}",))
    return Change(*key, "not measured", notes=(f"on neither side: {new['status']}: {new.get('reason', '')}",))


def _same_device(before: Result, after: Result) -> None:
    a, b = (r.settings.get("device", "cuda") for r in (before, after))
    if a != b:
        raise ValueError(f"before is of device {a} and after of {b}: such times are not compared")


#: Values of the environment block, by what they are called in a warning.
FACTS: dict[str, tuple[str, ...]] = {
    "processor": ("cpu",),
    "GPUs": ("gpus",),
    "usable processors": ("cpus_usable",),
    "torch's threads": ("torch_threads",),
    "system": ("system",),
    "Python": ("python",),
}
FACTS_OF_DEVICE: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {"instruction set": ("instruction_sets", "used"), "compiler": ("instruction_sets", "compiler")},
    "cuda": {
        "driver": ("gpu_driver",),
        "targets of the CUDA kernels": ("cuda_kernels", "targets"),
        "CUDA of the CUDA kernels": ("cuda_kernels", "cuda_version"),
        "tuned table": ("tuned_table", "state"),
    },
}


def differences(before: Result, after: Result) -> list[str]:
    """What besides tilewright's code may have changed the times, in words."""
    environments = before.environment, after.environment
    facts = FACTS | FACTS_OF_DEVICE[after.settings.get("device", "cuda")]
    for block in ("packages", "peers"):
        names = {n for e in environments for n in e.get(block) or {}} - {"tilewright"}
        facts |= {n: (block, n) for n in sorted(names)}
    found = []
    for name, path in facts.items():
        old, new = (_value(e, path) for e in environments)
        if old != new:
            found.append(f"{name}: before {_words(old)}, after {_words(new)}")
    for side, result in (("before", before), ("after", after)):
        commit = result.environment.get("commit")
        if commit and commit.endswith("+changes"):
            found.append(f"{side} is of {commit[:9]} with changes that no commit has")
        if not result.complete:
            found.append(f"{side} is incomplete")
    return found


def _value(environment: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = environment
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
