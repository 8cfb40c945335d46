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
from dataclasses import dataclass
from typing import Any

from .stats import Ratio, geometric_mean, paired_ratio, ratio_of_ratios, unpaired_ratio
from .summary import LEAST_BYTES, Result, Row, is_ours, is_roofline, median, times

#: Verdicts that fail a comparison, the worst first; then those that are good to know; then the rest.
REGRESSIONS = ("broken", "slower", "more memory")
VERDICTS = (*REGRESSIONS, "faster", "fixed", "another call", "only before", "only after", "not measured")
NO_CHANGE = "no change shown"

#: Fewer samples than this say nothing about their own spread.
LEAST_SAMPLES = 5

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

    def to_json(self) -> dict[str, Any]:
        peers = [{"item": i, "provider": p, "ratio": r} for (i, p), r in self.peers.items()]
        return {**vars(self), "changes": [c.to_json() for c in self.changes], "peers": peers}


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
    run_to_run = _run_to_run(list(peers.values()))
    changes = []
    for key in dict.fromkeys([*old, *new]):
        if key in ours:
            of_item = [] if paired else peers.get(key[0], [])
            changes.append(_judge(ours[key], of_item, paired, threshold, run_to_run, len(ours)))
        elif is_ours(old.get(key) or new[key]):
            changes.append(_untimed(key, old.get(key), new.get(key), before.rows, after.rows))
    if not changes:
        raise ValueError("neither result has a call of tilewright")
    order = {v: i for i, v in enumerate((*VERDICTS, NO_CHANGE))}
    changes.sort(key=lambda c: (order[c.verdict], -abs(math.log(c.judged.value)) if c.judged else 0.0))
    ratios = {(i, t.before["provider"]): t.ratio for i, of_item in peers.items() for t in of_item}
    drift = geometric_mean(list(ratios.values())) if ratios else None
    warnings = differences(before, after)
    alone = sum(c.judged is not None and c.against_peers is None for c in changes)
    if alone and not paired:
        warnings.append(
            f"{alone} of {len(ours)} calls have no peer timed on both sides: the machine's drift is in them"
        )
    return Comparison(threshold, tuple(changes), ratios, drift, run_to_run, tuple(warnings))


def _by_call(rows: Iterable[Row]) -> dict[Key, Row]:
    return {(r["item"], r["provider"]): r for r in rows if not is_roofline(r["item"]) and r["provider"] != "all"}


def _comparable(old: Row, new: Row) -> bool:
    timed = old["status"] == new["status"] == "timed" and old.get("label") == new.get("label")
    return timed and min(len(times(old)), len(times(new))) >= LEAST_SAMPLES


def _against(ours: _Timed, peers: Sequence[_Timed]) -> Ratio | None:
    """Samples of one item were taken in turns, so each of ours belongs to one of every peer."""
    sides = []
    for side in ("before", "after"):
        own, *of_peers = (times(getattr(t, side)) for t in (ours, *peers))
        if not of_peers or any(len(t) != len(own) for t in of_peers):
            return None
        sides.append((own, [geometric_mean(sample) for sample in zip(*of_peers, strict=True)]))
    return ratio_of_ratios(*sides)


def _variance_of_median(values: Sequence[float]) -> float:
    """Of a normal distribution's, whose width the median distance from the median gives: outliers do not count."""
    middle = median(values)
    width = 1.4826 * median([abs(v - middle) for v in values])
    return math.pi / 2 * width**2 / len(values)


def _run_to_run(items: Iterable[Sequence[_Timed]]) -> float:
    """Pooled over items with several peers: the variance of their ratios, less what their samples explain."""
    squares, degrees, explained = 0.0, 0, 0.0
    for peers in items:
        logs = [math.log(t.ratio) for t in peers]
        squares += sum((v - statistics.fmean(logs)) ** 2 for v in logs)
        degrees += len(logs) - 1
        explained += (len(logs) - 1) * statistics.fmean(t.variance for t in peers)
    return math.sqrt(max(0.0, squares - explained) / degrees) if degrees else 0.0


def _judge(
    timed: _Timed, peers: Sequence[_Timed], paired: bool, threshold: float, run_to_run: float, count: int
) -> Change:
    new, old = times(timed.after), times(timed.before)
    plain = paired_ratio(new, old) if paired else unpaired_ratio(new, old)
    against_peers = _against(timed, peers)
    used = against_peers or plain
    of_samples = math.log(used.high / used.low) / (2 * 1.96)  # as the 95% interval of a normal distribution
    of_runs = run_to_run * math.sqrt(1 + 1 / len(peers) if against_peers else 1)
    spread = _quantile(1 - 0.025 / count, min(len(old), len(new)) - 1) * math.hypot(of_samples, of_runs)
    judged = Ratio(used.value, used.value * math.exp(-spread), used.value * math.exp(spread))
    grown, notes = _other_growth(timed.before, timed.after, threshold)
    if judged.low > 1 + threshold:
        verdict = "slower"
    elif grown:
        verdict = "more memory"
    else:
        verdict = "faster" if judged.high < 1 / (1 + threshold) else NO_CHANGE
    row = timed.before
    return Change(
        row["item"], row["provider"], verdict, median(old), median(new), plain, against_peers, judged, tuple(notes)
    )


def _quantile(probability: float, degrees: int) -> float:
    """Student's t, by Peizer and Pratt's approximation (1968): within 2% from 4 degrees of freedom on."""
    z = statistics.NormalDist().inv_cdf(probability)
    return math.sqrt(degrees * math.expm1(z**2 * (degrees - 5 / 6) / (degrees - 2 / 3 + 0.1 / degrees) ** 2))


def _other_growth(old: Row, new: Row, threshold: float) -> tuple[bool, list[str]]:
    """Whether the peak of memory grew past the threshold; in words that, and an error that grew."""
    notes = []
    a, b = old.get("peak_bytes"), new.get("peak_bytes")
    grown = a is not None and b is not None and b > a * (1 + threshold) and b - a > LEAST_BYTES
    if a is not None and b is not None and (grown or (a > b * (1 + threshold) and a - b > LEAST_BYTES)):
        notes.append(f"peak memory {a / 1e6:.1f} -> {b / 1e6:.1f} MB")
    if (old.get("error") or 0.0) > 0.0 and (new.get("error") or 0.0) > ERROR_GROWTH * old["error"]:
        notes.append(f"error {old['error']:.1e} -> {new['error']:.1e}, within its limit of {new['limit']:.1e}")
    return grown, notes


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
FACTS = {
    "processor": ("cpu",),
    "GPUs": ("gpus",),
    "usable processors": ("cpus_usable",),
    "torch's threads": ("torch_threads",),
    "system": ("system",),
    "Python": ("python",),
    "instruction set": ("instruction_sets", "used"),
    "compiler of the CPU kernels": ("instruction_sets", "compiler"),
    "targets of the CUDA kernels": ("cuda_kernels", "targets"),
    "CUDA of the CUDA kernels": ("cuda_kernels", "cuda_version"),
    "tuned table": ("tuned_table", "state"),
}


def differences(before: Result, after: Result) -> list[str]:
    """What besides tilewright's code may have changed the times, in words."""
    environments = before.environment, after.environment
    facts: dict[str, tuple[str, ...]] = dict(FACTS)
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
