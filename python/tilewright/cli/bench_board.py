"""What ``tilewright bench`` shows: a table that grows while it measures, and the tables at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from .console import fancy, print_table

if TYPE_CHECKING:
    from ..bench.summary import Result, Row, Summary

COLUMNS = ("call", "ours", "fastest other", "ours is", "of limit", "error")


class Board(Protocol):
    def doing(self, done: int, of: int, what: str) -> None:
        """So many items of so many are done."""

    def rows(self, rows: list[Row]) -> None:
        """Those of the item that was measured last."""


class _Lines:
    """Where output is read later: a line for each call as it is done."""

    def doing(self, done: int, of: int, what: str) -> None:
        pass

    def rows(self, rows: list[Row]) -> None:
        from ..bench.summary import summarize

        for s in summarize(rows):
            call, *cells = line(s)
            print(f"{call}: {', '.join(c for c in cells if c)}", flush=True)


class _Live:
    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        text = TextColumn("{task.fields[text]}")
        self._bar = Progress(TextColumn("measuring"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), text)
        self._task = self._bar.add_task("", total=total, text="")
        self._console = Console()
        self._lines: list[tuple[str, ...]] = []
        self.live = Live(self._drawn(), console=self._console, transient=True, refresh_per_second=8)

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table(*COLUMNS, header_style="bold")
        for cells in self._lines[-max(4, self._console.height - 8) :]:
            style = "red" if "slower" in cells[3] else "green" if "faster" in cells[3] else None
            table.add_row(*cells, style=style)
        return Group(table, self._bar) if self._lines else self._bar

    def doing(self, done: int, of: int, what: str) -> None:
        self._bar.update(self._task, completed=done, total=of, text=what)

    def rows(self, rows: list[Row]) -> None:
        from ..bench.summary import summarize

        self._lines += [line(s) for s in summarize(rows)]
        self.live.update(self._drawn())


@contextmanager
def board(total: int) -> Iterator[Board]:
    if not fancy():
        yield _Lines()
        return
    shown = _Live(total)
    with shown.live:
        yield shown


def line(s: Summary) -> tuple[str, ...]:
    """An item's line of COLUMNS."""
    from ..bench.summary import is_ours, result_text

    ours = s.ours or next((r for r in s.rows if is_ours(r)), None) or s.rows[0]
    other = f"{result_text(s.peer)} {s.peer['provider']}" if s.peer is not None else ""
    lead = ""
    if s.lead is not None:
        lead = f"{s.lead} {s.verdict}" if s.verdict != "even" else f"{s.lead} (even)"
    share = f"{100 * ours['of_roofline']:.0f}%" if "of_roofline" in ours else ""
    error = f"{ours['error']:.1e}" if ours.get("error") is not None and s.ours is not None else ""
    return s.item, result_text(ours), other, lead, share, error


def print_result(result: Result) -> None:
    """A table of all calls, what failed and why, and each peer in a line."""
    from ..bench.report.view import reasons
    from ..bench.summary import is_roofline, result_text, standings, summarize

    summaries = summarize(result.rows)
    for row in result.rows:
        if is_roofline(row["item"]):
            print(f"{row['item']}: {result_text(row)}" + (f": {row['reason']}" if "reason" in row else ""))
    print()
    print_table(COLUMNS, [line(s) for s in summaries], "ours: tilewright's fastest backend; limit: of the same run")
    untimed = [(provider, status, str(n), why[:160]) for (provider, status, why), n in reasons(result.rows).items()]
    if untimed:
        print()
        print_table(("not measured", "", "calls", "because"), untimed)
    found = [s for s in standings(summaries) if s.ours_faster is not None]
    if found:
        print()
        cells = [(s.provider, f"{s.ours_faster:.2f}x", str(s.items), str(s.wins), str(s.refused)) for s in found]
        columns = ("peer", "tilewright's speed over its", "calls", "it is faster in", "it has no time in")
        print_table(columns, cells, "geometric means")
    counts = [s.verdict for s in summaries]
    print(
        f"\nagainst the fastest other implementation of each call: {counts.count('faster')} faster, "
        f"{counts.count('even')} even, {counts.count('slower')} slower"
    )
    for row in result.rows:
        if "fault" in row:
            print(f"fault: {row['item']}, {row['provider']}: {row['fault']}")
