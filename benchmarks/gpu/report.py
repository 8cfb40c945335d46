"""What a call found, as text that fits on a screen or two; the result file has the rest."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .run import Outcome, Run

Rows = Sequence[dict[str, Any]]

#: What the names of tilewright's providers begin with; the backend follows. (tilewright.bench.measure has it too, and
#: importing that takes seconds.)
OURS = "tilewright "

#: Of a stage so many problems are shown, so much of each, and so much of its reason: whoever sees only the last 12,000
#: characters of all that is printed has to see every stage's.
PROBLEMS, PROBLEM, REASON = 4, 180, 250


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cells = [list(columns), *(list(line) for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def text(
    run: Run, gpu: dict[str, Any], outcomes: dict[str, Outcome], targets: Sequence[tuple[str, str, str]] = ()
) -> str:
    """The figures first, then what is wrong, then a line for each stage, and the verdict last."""
    parts = [measured_table(rows(outcomes)), table(("target", "measured", ""), targets) if targets else ""]
    parts += [part for o in outcomes.values() for part in o.data.get("tables", ())]
    parts += [problems(outcomes), stage_table(outcomes)]
    first = "REHEARSAL, not a measurement: no GPU has computed any of this" if run.rehearsal else ""
    return "\n\n".join(filter(None, [first, *parts, verdict(run, gpu, outcomes)])) + "\n"


def verdict(run: Run, gpu: dict[str, Any], outcomes: dict[str, Outcome]) -> str:
    counts = Counter(o.status for o in outcomes.values())
    told = ", ".join(f"{n} {status}" for status, n in counts.items())
    good = set(counts) <= {"passed"}
    where = "a rehearsal without a GPU" if run.rehearsal else gpu.get("name", "an unknown GPU")
    return f"{run.call} on {where}: {'ALL PASSED' if good else told}"


def failed(outcomes: dict[str, Outcome]) -> bool:
    return any(o.status == "failed" for o in outcomes.values())


def problems(outcomes: dict[str, Outcome]) -> str:
    lines = []
    for name, outcome in outcomes.items():
        lines += [f"{name}: {p[:PROBLEM]}" for p in outcome.problems[:PROBLEMS]]
        more = len(outcome.problems) - PROBLEMS
        lines += [f"{name}: and {more} more, in the result file"] * (more > 0)
    return "\n".join(["what is wrong:", *lines]) if lines else ""


def stage_table(outcomes: dict[str, Outcome]) -> str:
    lines = [(name, o.status, f"{o.seconds:.0f} s", o.reason[:REASON]) for name, o in outcomes.items()]
    return table(("stage", "", "", ""), lines)


def rows(outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """Of every item the rows of the last stage that has timed one of ours, since there it was beside most others; of
    the others those that there are."""
    by_item: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes.values():
        found: dict[str, list[dict[str, Any]]] = {}
        for row in outcome.data.get("rows", ()):
            found.setdefault(row["item"], []).append(row)
        for item, of_item in found.items():
            if item not in by_item or any(r["status"] in ("timed", "rehearsed") for r in of_item if _is_ours(r)):
                by_item[item] = of_item
    return [row for of_item in by_item.values() for row in of_item]


def _is_ours(row: dict[str, Any]) -> bool:
    return str(row["provider"]).startswith(OURS)


def measured_table(found: Rows) -> str:
    """An item per line: each provider's result, and why one has none in as few letters as possible."""
    by_item: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found:
        by_item.setdefault(row["item"], {})[row["provider"]] = row
    ours = dict.fromkeys(r["provider"] for r in found if _is_ours(r))
    shown = ("timed", "rehearsed")
    peers = dict.fromkeys(r["provider"] for r in found if r["provider"] not in ours and r["status"] in shown)
    providers = [*ours, *peers]
    lines = []
    for item, of_item in by_item.items():
        if set(of_item) == {"all"}:
            continue
        unit = next((r["unit"] for r in of_item.values() if "unit" in r), "")
        lines.append([item, unit, *(cell(of_item.get(p)) for p in providers)])
    if not lines:
        return ""
    missed = sum(set(of_item) == {"all"} for of_item in by_item.values())
    printed = table(("", "", *providers), lines)
    return printed + (f"\n{missed} calls have no row: see their reasons in the result file" if missed else "")


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["status"] != "timed":
        return str(row["status"])
    share = f" {100 * row['of_roofline']:.0f}%" if "of_roofline" in row else ""
    return f"{three_digits(row['result'])}{share}" + ("!" if "fault" in row else "")


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cached(run: Run, stage: str) -> tuple[str, list[str]]:
    """Of the kernels that a stage's workers asked Triton's cache for: a line with the counts, and a line for each that
    was not there. "" if nothing was asked for."""
    if not run.cache_log.exists():
        return "", []
    mine = []
    for line in run.cache_log.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # of a worker that was ended while it wrote
            event = json.loads(line)
            mine += [event] * (event["stage"] == stage)
    missed = {e["key"]: e["why"] for e in mine if not e["hit"]}
    if not mine:
        return "", []
    found = len({e["key"] for e in mine} - set(missed))
    told = f"Triton's cache: {found} kernels found, {len(missed)} compiled here"
    return told, [f"compiled here: {why}" for why in missed.values() if why]
