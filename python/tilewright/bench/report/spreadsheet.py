"""All rows as a table for spreadsheets."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ..summary import Result, Row

QUANTILES = ("p20", "p50", "p80")
FACTS = ("item", "op", "mode", "scene", "label", "dtype", "provider")
RESULTS = ("status", "reason", "result", "unit")
LAST = ("of_roofline", "error", "limit", "peak_bytes", "fault")
COLUMNS = (
    *FACTS,
    "version",
    *RESULTS,
    *(f"{clock}_{q}_seconds" for clock in ("device", "wall") for q in QUANTILES),
    *LAST,
)

#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(result: Result, path: Path) -> None:
    """A line for each row. UTF-8 with the mark that spreadsheets know it by; empty where a row has no value.

    Text that would be a formula has an apostrophe before it, as a spreadsheet's own text cells do.
    """
    versions = result.environment.get("peers") or {}
    own = (result.environment.get("packages") or {}).get("tilewright")
    with path.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in result.rows:
            writer.writerow([_safe(v) for v in _cells(row, version_of(row, versions, own))])


def version_of(row: Row, versions: dict[str, str | None], own: str | None) -> str | None:
    """Of the provider's package; None where it is not known or not installed."""
    return own if row["provider"].startswith("tilewright") else versions.get(row["provider"])


def _cells(row: Row, version: str | None) -> list[Any]:
    quantiles = [row.get(clock, {}).get(q) for clock in ("device", "wall") for q in QUANTILES]
    facts, results, last = ([row.get(n) for n in names] for names in (FACTS, RESULTS, LAST))
    return [*facts, version, *results, *quantiles, *last]


def _safe(value: Any) -> Any:
    if isinstance(value, (int, float)) or value is None:
        return value
    text = str(value).replace("\0", "")
    return "'" + text if text.startswith(_FORMULA) else text
