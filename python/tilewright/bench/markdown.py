"""What a result file says, as Markdown: some telling calls in a table, all of them in a line, and where it is from."""

from __future__ import annotations

from collections.abc import Sequence

from .stats import geometric_mean
from .summary import Result, Row, Summary, clock
from .timing import milliseconds

#: What the columns hold, for a line below the table.
LEGEND = (
    "Times are medians of samples taken in turns; **x** is how many times faster tilewright is than the fastest other "
    "implementation of the call, with its 95% interval; the limit is a matrix product, or a copy or a read, "
    "of the same run (more than 100% is a fault of the measurement, marked !); the error is the distance from "
    "float64, ‖found - exact‖ / ‖exact‖."
)


def choose(summaries: Sequence[Summary]) -> list[Summary]:
    """One call of each op and scene that another implementation serves as well, whatever came of it.

    The scenes take turns: the first shows its first call, the second its second, and so on around, so that all sizes,
    dtypes and modes appear. Points of growth curves, overheads and calls of one's own are left out.
    """
    scenes: dict[tuple[str, str], list[Summary]] = {}
    for s in summaries:
        of = s.facts
        if s.lead is not None and not of.get("curve") and of["op"] != "overhead" and of.get("scene") != "own":
            scenes.setdefault((of["op"], of.get("scene", "")), []).append(s)
    return [calls[i % len(calls)] for i, calls in enumerate(scenes.values())]


def table(summaries: Sequence[Summary]) -> list[str]:
    """Lines; a call that has no time of ours or of another implementation says so."""
    columns = ("op", "call", "dtype", "mode", "tilewright", "fastest other", "x", "of the limit", "error")
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *(_line(s) for s in summaries)]


def _line(s: Summary) -> str:
    of, ours, peer = s.facts, s.ours, s.peer
    cells = [of["op"], ": ".join(filter(None, (of.get("scene"), of.get("label", s.item)))), of.get("dtype", "")]
    cells += [of.get("mode", ""), time_text(ours) if ours is not None else str(s.rows[0]["status"])]
    cells.append(f"{peer['provider']} {time_text(peer)}" if peer is not None else "none")
    cells.append(f"**{s.lead.value:.2f}** [{s.lead.low:.2f}, {s.lead.high:.2f}]" if s.lead is not None else "")
    share, error = (ours.get("of_roofline"), ours.get("error")) if ours is not None else (None, None)
    fault = "!" if ours is not None and "fault" in ours else ""
    cells += [f"{100 * share:.0f}%{fault}" if share is not None else "", f"{error:.1e}" if error is not None else ""]
    return "| " + " | ".join(cells) + " |"


def time_text(row: Row) -> str:
    """A timed row's median."""
    return milliseconds(row[clock(row)]["p50"])


def totals(summaries: Sequence[Summary]) -> str:
    """All calls in a sentence; those that nobody else serves, or that failed, are counted as such."""
    leads = [s.lead.value for s in summaries if s.lead is not None]
    counts = [s.verdict for s in summaries]
    if not leads:
        return "No call was measured beside another implementation."
    text = (
        f"All {len(leads)} calls against the fastest other implementation of each: {geometric_mean(leads):.2f} times "
        f"its speed in the geometric mean; faster in {counts.count('faster')}, even in {counts.count('even')} (the "
        f"interval holds 1), slower in {counts.count('slower')}."
    )
    if alone := counts.count("alone"):
        text += f" {alone} more {'is' if alone == 1 else 'are'} served by no other."
    if none := counts.count("none"):
        text += f" {none} {'has' if none == 1 else 'have'} no time of ours."
    return text


def where(result: Result) -> str:
    """The machine and its software, and the day."""
    e = result.environment
    torch = f"torch {e['packages']['torch']}"
    if device(result) == "cpu":
        return f"{e['cpu']}, {e['cpus_usable']} cores, {torch} on {e['torch_threads']} threads, {e['date'][:10]}"
    return f"{', '.join(dict.fromkeys(e['gpus']))}, {torch}, triton {e['packages']['triton']}, {e['date'][:10]}"


def device(result: Result) -> str:
    """Which kind of device was measured: "cpu" or "cuda"."""
    return str(result.settings.get("device", "cuda"))
