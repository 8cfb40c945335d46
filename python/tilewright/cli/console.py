"""Output: tables and progress bars on a terminal, plain lines that scripts can read elsewhere (and with NO_COLOR)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class UserError(Exception):
    """A mistake that the user can mend: shown as one line, without a traceback."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def user_errors(*kinds: type[Exception], exit_code: int = 2) -> Iterator[None]:
    """Exceptions of these kinds, raised inside, are the user's to mend. Wrap only what takes the user's own input."""
    try:
        yield
    except kinds as error:
        raise UserError(" ".join(str(error).split()), exit_code) from error


def fancy() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """On a terminal a ruled table; elsewhere columns aligned by spaces, without a title."""
    if fancy():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title or None, title_justify="left", header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            style = "red" if "failed" in columns and row[list(columns).index("failed")] not in ("0", "") else None
            table.add_row(*row, style=style)
        Console().print(table)
        return
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    for line in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


class Progress(Protocol):
    def __call__(self, done: float, text: str = "") -> None: ...


@contextmanager
def progress_bar(title: str, total: float) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere. Yields a function of how much of ``total`` is done, and a short text."""
    if not fancy():
        yield lambda done, text="": None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(title),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Bar(*columns, transient=True) as bar:
        task = bar.add_task("", total=total, text="")
        yield lambda done, text="": bar.update(task, completed=done, text=text)


def write_json(path: Path, value: Any) -> None:
    with user_errors(OSError, exit_code=1):
        path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
