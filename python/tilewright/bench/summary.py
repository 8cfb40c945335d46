"""What the rows of a benchmark say: for each call what is fastest, by how much, and how far it is from the limit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .items.rooflines import ROOFLINE
from .measure import OURS
from .stats import Growth, Ratio, fit_growth, geometric_mean, paired_ratio

Row = dict[str, Any]

#: The version of the file's form, for readers of old files.
FORM = 1


@dataclass(frozen=True)
class Result:
    """A result file. environment: of the machine and its software, with the peers' versions. command: that repeats it.
    settings: of measure.Bench. rows: one for each item and provider. complete: nothing was interrupted or left out."""

    environment: dict[str, Any]
    command: str
    settings: dict[str, Any]
    rows: list[Row]
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        return {"form": FORM, **vars(self)}


def read(path: Path) -> Result:
    """ValueError if it is not a result file of ``tilewright bench``, or of ``make gpu-measure``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    names = ("environment", "command", "settings", "rows")
    if not isinstance(found, dict) or not all(n in found for n in names) or not isinstance(found["rows"], list):
        raise ValueError(f"{path}: not a result file of tilewright bench: it has no {', '.join(names)}")
    if found.get("rehearsal"):
        raise ValueError(f"{path}: of a rehearsal, which measures nothing")
    if found.get("form", FORM) != FORM:
        raise ValueError(f"{path}: of form {found['form']}; this version reads form {FORM}")
    environment, command, settings, rows = (found[n] for n in names)
    return Result(environment, command, settings, rows, bool(found.get("complete", True)))


def write(result: Result, path: Path) -> None:
    """A row of the result is a line of the file."""
    head = {name: value for name, value in result.to_json().items() if name != "rows"}
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in result.rows)
    text = json.dumps({**head, "rows": []}, indent=1, allow_nan=False)
    path.write_text(text.removesuffix("[]\n}") + f"[\n{lines}\n]\n}}\n", encoding="utf-8")


def is_roofline(item: str) -> bool:
    return item.startswith(ROOFLINE)


def is_ours(row: Row) -> bool:
    return str(row["provider"]).startswith(OURS)


def clock(row: Row) -> str:
    """Which of a timed row's two times its result was made of."""
    return str(row.get("by", "device"))


def times(row: Row) -> tuple[float, ...]:
    """The samples that its result was made of, in the order in which they were taken."""
    return tuple(row[clock(row)]["values"])


def times_faster(row: Row, than: Row) -> Ratio:
    """How many times faster ``row`` is than another of its item: of samples that were taken in turns, of which one may
    have more than the other, the paired ratio."""
    mine, other = times(row), times(than)
    count = min(len(mine), len(other))
    return paired_ratio(other[:count], mine[:count])


@dataclass(frozen=True)
class Summary:
    """One item. rows: of all its providers. timed: fastest first. ours: tilewright's fastest; peer: the fastest other.

    lead: how many times faster ours is than that peer (below 1: slower); None where one of them has no time.
    """

    item: str
    rows: tuple[Row, ...]
    timed: tuple[Row, ...]
    ours: Row | None
    peer: Row | None
    lead: Ratio | None

    @property
    def facts(self) -> Row:
        """What is the same in all its rows: "op", "mode", "dtype", "label", "scene", "unit" ..."""
        return self.rows[0]

    @property
    def verdict(self) -> str:
        """ "faster", "slower", "even" (the interval holds 1), "alone" (no peer has a time), "none" (ours has none)."""
        if self.ours is None:
            return "none"
        if self.lead is None:
            return "alone"
        return "faster" if self.lead.low > 1.0 else "slower" if self.lead.high < 1.0 else "even"


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """One for each item but the rooflines, in the order of the rows."""
    by_item: dict[str, list[Row]] = {}
    for row in rows:
        if not is_roofline(row["item"]):
            by_item.setdefault(row["item"], []).append(row)
    found = []
    for item, of_item in by_item.items():
        timed = sorted((r for r in of_item if r["status"] == "timed"), key=lambda r: float(median(times(r))))
        ours = next((r for r in timed if is_ours(r)), None)
        peer = next((r for r in timed if not is_ours(r)), None)
        lead = times_faster(ours, peer) if ours is not None and peer is not None else None
        found.append(Summary(item, tuple(of_item), tuple(timed), ours, peer, lead))
    return found


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclass(frozen=True)
class Standing:
    """Of one provider, over all items that it and our fastest backend have times for.

    ours_faster: geometric mean of how many times faster ours is. share: of its items that it serves at all.
    """

    provider: str
    items: int
    ours_faster: float | None
    wins: int
    refused: int


def standings(summaries: Sequence[Summary]) -> list[Standing]:
    """Every peer against our fastest backend, the strongest peer first; those without a time last."""
    providers = dict.fromkeys(
        r["provider"] for s in summaries for r in s.rows if not is_ours(r) and r["provider"] != "all"
    )
    found = []
    for provider in providers:
        ratios, refused = [], 0
        for s in summaries:
            row = next((r for r in s.rows if r["provider"] == provider), None)
            if row is None:
                continue
            if row["status"] != "timed":
                refused += 1
            elif s.ours is not None:
                ratios.append(times_faster(s.ours, row).value)
        mean = geometric_mean(ratios) if ratios else None
        found.append(Standing(provider, len(ratios), mean, sum(r < 1.0 for r in ratios), refused))
    return sorted(found, key=lambda s: (s.ours_faster is None, s.ours_faster or 0.0))


@dataclass(frozen=True)
class Curve:
    """What a provider needs as one size grows. seconds: fitted growth of its time; memory: of its peak bytes."""

    op: str
    axis: str
    provider: str
    sizes: tuple[int, ...]
    times: tuple[float, ...]
    bytes: tuple[int | None, ...]
    seconds: Growth | None
    memory: Growth | None


#: A call below this costs the host more than the kernel, and memory below this is not resolved: left out of the fits.
LEAST_SECONDS, LEAST_BYTES = 2e-4, 2**20


def curves(rows: Iterable[Row]) -> list[Curve]:
    points: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.get("curve") and row["status"] == "timed":
            points.setdefault((row["op"], row["curve"], row["provider"]), []).append(row)
    return [_curve(*key, sorted(found, key=lambda r: int(r["size"]))) for key, found in points.items()]


def _curve(op: str, axis: str, provider: str, rows: list[Row]) -> Curve:
    sizes = tuple(int(r["size"]) for r in rows)
    seconds = tuple(median(times(r)) for r in rows)
    peaks = tuple(r.get("peak_bytes") for r in rows)
    timed = [(s, t) for s, t in zip(sizes, seconds, strict=True) if t >= LEAST_SECONDS]
    kept = [(s, b) for s, b in zip(sizes, peaks, strict=True) if b is not None and b >= LEAST_BYTES]
    return Curve(op, axis, provider, sizes, seconds, peaks, _fit(timed), _fit(kept))


def _fit(points: Sequence[tuple[float, float]]) -> Growth | None:
    return fit_growth([s for s, _ in points], [c for _, c in points])


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def result_text(row: Row) -> str:
    """With its unit; "!" behind what is a fault of the measurement; the status of what has no time."""
    if row["status"] != "timed":
        return str(row["status"])
    return f"{three_digits(row['result'])} {row['unit']}" + ("!" if "fault" in row else "")
