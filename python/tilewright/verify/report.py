"""Records in words: one line per implementation and dtype, failures with the command that repeats them, and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .case import DTYPE_NAMES
from .record import Record
from .tolerance import Comparison

#: Columns of :func:`summary_rows`.
COLUMNS = ("op", "backend", "dtype", "passed", "failed", "refused", "worst", "error", "torch's", "ratio", "of limit")


def summary_rows(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """One row per op, backend and dtype: counts, then the tensor that came closest to its limit or is furthest past it.

    worst: case and tensor, and whether its max or its mean error is meant. error: the backend's distance from float64;
    torch's: PyTorch's own on the same inputs; ratio: the one over the other; of limit: the share of what is allowed.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        groups.setdefault((r.case.op, r.backend, DTYPE_NAMES[r.case.dtype]), []).append(r)
    rows = []
    for key, group in groups.items():
        counts = tuple(str(sum(r.status == s for r in group)) for s in ("passed", "failed", "refused"))
        rows.append((*key, *counts, *_worst(group)))
    return rows


def _worst(group: Sequence[Record]) -> tuple[str, str, str, str, str]:
    found = [(r, r.worst) for r in group if r.worst is not None]
    if not found:
        return ("", "", "", "", "")
    record, c = max(found, key=lambda pair: pair[1].used if pair[1] is not None else 0.0)
    assert c is not None
    kind, error, torch_error = decisive(c)
    used = "not finite" if math.isnan(error) else f"{100 * c.used:.0f}%"
    ratio = f"{error / torch_error:.2f}" if torch_error > 0.0 else "-"
    return (f"{record.case.name}: {c.tensor} {kind}", f"{error:.2e}", f"{torch_error:.2e}", ratio, used)


def decisive(c: Comparison) -> tuple[str, float, float]:
    """Which of max and mean came closest to its limit: its name, the error and torch's error."""
    by_max = c.max_error * c.mean_limit >= c.mean_error * c.max_limit or math.isnan(c.max_error)
    return ("max", c.max_error, c.torch_max_error) if by_max else ("mean", c.mean_error, c.torch_mean_error)


def failure_lines(record: Record, command: str) -> list[str]:
    """What went wrong, on what, and the command that repeats it."""
    spec = ", ".join(f"{k}={v!r}" for k, v in record.case.spec.items())
    return [
        f"FAILED {record.backend} {record.case.id} ({spec})",
        *(f"  {problem}" for problem in record.problems),
        f"  repeat: {command}",
    ]


def to_json(records: Sequence[Record], **header: Any) -> dict[str, Any]:
    """Everything that was found; see docs/verify.md for the fields."""
    counts = {s: sum(r.status == s for r in records) for s in ("passed", "failed", "refused")}
    return {**header, **counts, "records": [finite(r.to_json()) for r in records]}


def finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON cannot write."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
