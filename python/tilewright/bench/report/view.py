"""What the pictures and the page show of a result, and how it is written and coloured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..stats import geometric_mean
from ..summary import LEAST_BYTES, Curve, Result, Row, Summary, clock, is_ours, summarize, three_digits

TITLES = {
    "attention": "Attention",
    "varlen_attention": "Attention, packed sequences",
    "kvcache_attention": "Decoding with a cache",
    "softmax": "Softmax",
    "ffn": "Feed-forward",
    "overhead": "What a call costs the host",
    "end_to_end": "A whole GPT-2",
    "": "Calls without a result",
}

#: Tilewright's colour, on light and on dark; red (of Okabe and Ito) where a peer is ahead. The peers' colours are Paul
#: Tol's "muted" ones, which colour-blind people tell apart; for more peers than colours the markers change.
OURS_COLOR, SLOWER_COLOR = ("#0057b8", "#5aa9ff"), ("#b84300", "#ff9a5c")
PEER_COLORS = (
    ("#cc6677", "#e38b9a"),
    ("#332288", "#9a8cf0"),
    ("#117733", "#4fbf77"),
    ("#b8a232", "#ddcc77"),
    ("#2f9fce", "#88ccee"),
    ("#882255", "#d66fa3"),
    ("#44aa99", "#66ccbb"),
    ("#857f1f", "#c2bb55"),
    ("#aa4499", "#d983cb"),
)
#: In matplotlib's letters: circle, square, triangle, diamond.
MARKERS = "os^D"

#: How cost grows with size where nothing is wasted: exponents of time and of memory that are drawn as thin guides.
GUIDES = {"attention": ((2,), (1, 2))}
GUIDES_ELSE = ((1,), (1,))

#: Speeds relative to the fastest peer beyond these are drawn at the edge: ours, and others that are slower.
EDGE, SLOW_EDGE = 8.0, 4.0


@dataclass(frozen=True)
class Style:
    """color: its place in PEER_COLORS, None for tilewright. marker: one of MARKERS. second: a further own backend."""

    color: int | None
    marker: str
    second: bool = False


def styles(rows: Iterable[Row]) -> dict[str, Style]:
    """The same for a provider in every picture of a result."""
    names = dict.fromkeys(str(r["provider"]) for r in rows if r["provider"] != "all" and r.get("op") != "roofline")
    ours = [n for n in names if is_ours({"provider": n})]
    found = {n: Style(None, MARKERS[i % len(MARKERS)], i > 0) for i, n in enumerate(ours)}
    for i, name in enumerate(n for n in names if n not in found):
        found[name] = Style(i % len(PEER_COLORS), MARKERS[i // len(PEER_COLORS) % len(MARKERS)])
    return found


@dataclass(frozen=True)
class Mark:
    """How many times as fast as the fastest peer a provider is; low to high: from its 80th to its 20th percentile."""

    row: Row
    speed: float
    low: float
    high: float


@dataclass(frozen=True)
class Call:
    """An item for showing. number: its place in the result. marks: fastest first. limit: the roofline's speed, relative
    to the fastest peer as the marks' are (to tilewright, where no peer has a time)."""

    number: int
    summary: Summary
    marks: tuple[Mark, ...]
    limit: float | None

    @property
    def facts(self) -> Row:
        return next((r for r in self.summary.rows if "op" in r), self.summary.rows[0])

    @property
    def op(self) -> str:
        return str(self.facts.get("op", ""))

    @property
    def title(self) -> str:
        return str(self.facts.get("label") or self.summary.item)

    @property
    def subtitle(self) -> str:
        facts = {**self.facts, "scene": title_of(self.op)} if self.facts.get("curve") else self.facts
        return " · ".join(str(facts[n]) for n in ("scene", "mode", "dtype") if facts.get(n))

    @property
    def without(self) -> list[Row]:
        """What has no time."""
        return [r for r in self.summary.rows if r["status"] != "timed"]


def calls(result: Result) -> list[Call]:
    return [_call(number, s) for number, s in enumerate(summarize(result.rows))]


def quantile(row: Row, name: str) -> float:
    """Seconds, "p20", "p50" or "p80", of the times that the row's result was made of."""
    return float(row[clock(row)][name])


def _call(number: int, summary: Summary) -> Call:
    base = summary.peer or summary.ours
    if base is None:
        return Call(number, summary, (), None)
    marks = []
    for row in summary.timed:
        p20, p50, p80 = (quantile(row, q) for q in ("p20", "p50", "p80"))
        speed = quantile(base, "p50") / p50
        if row is summary.ours and summary.lead is not None:
            speed = summary.lead.value
        marks.append(Mark(row, speed, speed * p50 / p80, speed * p50 / p20))
    limit = 1.0 / base["of_roofline"] if base.get("of_roofline") else None
    return Call(number, summary, tuple(marks), limit)


def by_op(found: Sequence[Call]) -> dict[str, list[Call]]:
    """Without the points of growth curves. Calls that have no result at all are last, under ""."""
    groups: dict[str, list[Call]] = {}
    for call in sorted(found, key=lambda c: not c.op):
        if not call.facts.get("curve"):
            groups.setdefault(call.op, []).append(call)
    return groups


def title_of(op: str) -> str:
    return TITLES.get(op, op)


def panels(found: Iterable[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Curves with two points or more, by op and axis."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in found:
        if len(curve.sizes) > 1:
            groups.setdefault((curve.op, curve.axis), []).append(curve)
    return groups


def drawn_lines(found: Iterable[Curve], memory: bool) -> list[tuple[Curve, list[tuple[float, float]]]]:
    """(size, seconds or bytes) of each curve, tilewright's last and so in front; without lines that show nothing.

    Memory below LEAST_BYTES is not resolved, and drawn as that much.
    """
    lines = []
    for curve in sorted(found, key=lambda c: is_ours({"provider": c.provider})):
        costs = [None if b is None else max(b, LEAST_BYTES) for b in curve.bytes] if memory else curve.times
        points = [(float(s), float(c)) for s, c in zip(curve.sizes, costs, strict=True) if c is not None]
        if points:
            lines.append((curve, points))
    resolved = not memory or any(c > LEAST_BYTES for _, points in lines for _, c in points)
    return lines if resolved else []


def guides(op: str, lines: Iterable[Sequence[tuple[float, float]]], memory: bool) -> list[tuple[int, float]]:
    """(exponent, factor) of each guide: through the last point of the cheapest line at the largest size."""
    ends = [line[-1] for line in lines if not memory or line[-1][1] > LEAST_BYTES]
    if not ends:
        return []
    size = max(s for s, _ in ends)
    cost = min(c for s, c in ends if s == size)
    return [(e, cost / size**e) for e in GUIDES.get(op, GUIDES_ELSE)[memory]]


def cost_ticks(low: float, high: float, memory: bool) -> list[tuple[float, str]]:
    """Round costs on a logarithmic axis, at most 7, with their labels."""
    if memory:
        powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
        found = [[2.0**p for p in powers if (p - 10) % step == 0] for step in (1, 2, 5, 10)]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [[m * 10.0**d for d in decades for m in steps] for steps in ((1, 2, 5), (1, 3), (1,))]
        found.append([10.0**d for d in decades if d % 2 == 0])
    fitting = [[v for v in values if low <= v <= high] for values in found]
    values = next((v for v in fitting if len(v) <= 7), fitting[-1])
    shown = size if memory else duration
    return [(v, ("≤ " if memory and v <= LEAST_BYTES else "") + shown(v)) for v in values]


def short_size(value: int) -> str:
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


@dataclass(frozen=True)
class Glance:
    """Over all calls. mean: geometric, of how many times faster ours is than the fastest peer. shares: of the roofline,
    and errors: with their limits, of our fastest backend in each call; fastest: by provider, in how many calls."""

    mean: float | None
    verdicts: dict[str, int]
    shares: list[float]
    errors: list[tuple[str, float, float]]
    fastest: dict[str, int]


def glance(found: Sequence[Call]) -> Glance:
    leads = [c.summary.lead.value for c in found if c.summary.lead is not None]
    verdicts = dict.fromkeys(("faster", "even", "slower", "alone", "none"), 0)
    fastest: dict[str, int] = {}
    shares, errors = [], []
    for call in found:
        verdicts[call.summary.verdict] += 1
        if call.summary.timed:
            name = call.summary.timed[0]["provider"]
            fastest[name] = fastest.get(name, 0) + 1
        ours = call.summary.ours
        if ours is not None and "of_roofline" in ours and "fault" not in ours:
            shares.append(ours["of_roofline"])
        if ours is not None and ours.get("error") is not None and ours.get("limit"):
            errors.append((str(ours.get("dtype", "")), ours["error"], ours["limit"]))
    fastest = dict(sorted(fastest.items(), key=lambda f: -f[1]))
    return Glance(geometric_mean(leads) if leads else None, verdicts, shares, errors, fastest)


def reasons(rows: Iterable[Row]) -> dict[tuple[str, str, str], int]:
    """Why there is no time, (provider, status, reason), with the number of calls."""
    found: dict[tuple[str, str, str], int] = {}
    for row in rows:
        if row["status"] != "timed":
            key = (str(row["provider"]), str(row["status"]), str(row.get("reason", "")))
            found[key] = found.get(key, 0) + 1
    return found


def machine(environment: dict[str, Any]) -> str:
    gpus = dict.fromkeys(map(str, environment.get("gpus") or ()))
    return ", ".join(gpus) or str(environment.get("cpu") or "unknown machine")


def domain(ours: Iterable[float], others: Iterable[float] = ()) -> tuple[float, float]:
    """Of an axis of speeds around 1, half to twice at least. Far slower ones of others do not squeeze the rest."""
    found = [0.5, 2.0, *ours, *(max(v, 1 / SLOW_EDGE) for v in others)]
    return max(min(found), 1 / EDGE) / 1.06, min(max(found), EDGE) * 1.06


def field_domain(calls: Sequence[Call]) -> tuple[float, float]:
    """Of the axis that all these calls share."""
    marks = [m for c in calls for m in c.marks]
    ours, others = ([m.speed for m in marks if is_ours(m.row) is mine] for mine in (True, False))
    return domain(ours, [*others, *(c.limit for c in calls if c.limit is not None)])


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1.0:
            return f"{three_digits(seconds * scale)} {unit}"
    return f"{three_digits(seconds * 1e9)} ns"


def size(count: float) -> str:
    for unit, scale in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if count >= scale:
            return f"{three_digits(count / scale)} {unit}"
    return f"{count:.0f} B"


def percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 or share == 0 else f"{100 * share:.1g}%"


def times_text(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 99.5 else f"{ratio:.0f}×"
