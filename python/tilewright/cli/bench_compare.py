"""``tilewright bench --compare BEFORE AFTER`` and ``tilewright bench --base REV``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import UserError, print_table, progress_bar, user_errors, write_json

if TYPE_CHECKING:
    from ..bench.base import Base
    from ..bench.compare import Change, Comparison
    from ..bench.session import Session
    from ..bench.summary import Result

#: "alone": the ratio where the one before it is held against that of peers.
COLUMNS = ("call", "provider", "before", "after", "time after / before", "alone", "verdict")


def compare_files(before: Path, after: Path, threshold: float, json: Path | None) -> int:
    """The exit code: 1 if a call of tilewright is slower by more than the threshold (0.05 is 5%), broken, or needs more
    memory by as much."""
    from ..bench.compare import compare, read_checked

    with user_errors(ValueError):
        old, new = read_checked(before), read_checked(after)
        found = compare(old, new, threshold)
    print(f"before: {before}, {_described(old)}")
    print(f"after: {after}, {_described(new)}")
    return _report(found, old, new, json)


def compare_with_base(
    rev: str,
    settings: dict[str, Any],
    ops: tuple[str, ...],
    dtypes: list[str] | None,
    patterns: list[str] | None,
    threshold: float,
    json: Path | None,
    budget: float = 3600.0,
) -> int:
    """Build the commit, and measure it and the running package in turns. The exit code is as of compare_files, or 130
    if Ctrl-C ended it without a regression; what was measured is shown then too.

    settings: of measure.Bench. ops, dtypes, patterns: which calls. budget: seconds of measuring; what is left then is
    "not measured". Only tilewright is measured, unless the settings name providers.
    """
    from ..bench.base import checkout, newer_sources, prepare, resolve, targets_of
    from ..bench.compare import compare
    from ..bench.items import all_items
    from ..bench.measure import OURS
    from ..bench.summary import is_roofline
    from .bench import choose

    items = choose(all_items(settings["shapes"], ops, tuple(settings["calls"])), dtypes, patterns)
    names = [i.name for i in items if not is_roofline(i.name)]
    if not settings["providers"]:
        settings = {**settings, "providers": [OURS + b for b in settings["backends"]]}
    with _base_errors(rev):
        root = checkout()
        commit, targets = resolve(root, rev), targets_of(settings["backends"])
        print(f"before: {rev}, commit {commit[:9]}", flush=True)
        with progress_bar(f"building {commit[:9]}", 1.0) as progress:
            base = prepare(root, rev, targets, lambda done, of, what: progress(done / of, what))
    for text in newer_sources(root, targets):
        print(f"warning: {text}", file=sys.stderr)
    old, new = _measure(base, settings, names, budget)
    print(f"after: {_described(new)}")
    with user_errors(ValueError, exit_code=1):  # nothing was measured
        found = compare(old, new, threshold, paired=True)
    code = _report(found, old, new, json)
    return code if code or new.complete else 130


@contextmanager
def _base_errors(rev: str) -> Iterator[None]:
    from ..bench.base import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        raise UserError(f"--base {rev}: {error}", 1) from error


def _measure(base: Base, settings: dict[str, Any], names: list[str], budget: float) -> tuple[Result, Result]:
    """Of the base, and of the running package."""
    from ..bench.process import Worker
    from ..bench.rounds import measure_in_turns
    from ..bench.session import Session
    from ..bench.summary import Result, Row
    from .bench import repeat_command

    folder = base.log.parent
    serve = [sys.executable, "-c", "from tilewright.bench.rounds_worker import serve; serve()"]
    workers: list[Callable[[dict[str, str]], Worker]] = [
        lambda extra: base.worker(folder / "before.log", {**os.environ, **extra}),
        lambda extra: Worker(serve, folder / "after.log", {**os.environ, **extra}, folder),
    ]
    end = time.monotonic() + budget
    before, after = (Session(make, settings, end, lambda done, of, what: None) for make in workers)
    rows: tuple[list[Row], list[Row]] = ([], [])
    complete = True
    try:
        try:
            before.items()
        except RuntimeError as error:
            raise UserError(f"--base {base.commit[:9]}: this benchmark does not run on it: {error}", 1) from None
        environments = {**before.environment(), "commit": base.commit}, after.environment()
        with progress_bar("measuring", len(names)) as progress:
            try:
                if settings["device"] != "cpu":
                    _compile((before, after), names)
                for done, found in enumerate(measure_in_turns(before, after, names)):
                    rows[0].extend(found[0])
                    rows[1].extend(found[1])
                    progress(done + 1, names[done])
            except KeyboardInterrupt:
                complete = False
    finally:
        before.close()
        after.close()
    command = repeat_command(sys.argv)
    old, new = (Result(e, command, settings, r, complete) for e, r in zip(environments, rows, strict=True))
    return old, new


def _compile(sessions: Sequence[Session], names: list[str]) -> None:
    """What crashes here crashes again when it is measured, and gets its row then."""
    from ..bench.session import compilers

    for session in sessions:
        session.compile_all(names, session.deadline, compilers())


def _described(result: Result) -> str:
    environment = result.environment
    commit = environment.get("commit") or "no commit"
    changed = " with changes" if commit.endswith("+changes") else ""
    return f"{commit[:9]}{changed}, {str(environment.get('date', ''))[:10]}".rstrip(", ")


def _report(found: Comparison, before: Result, after: Result, json: Path | None) -> int:
    for text in found.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print()
    lines = [COLUMNS, *(_line(c) for c in found.changes)]
    if not any(c.against_peers for c in found.changes):
        alone = COLUMNS.index("alone")
        lines = [(*cells[:alone], *cells[alone + 1 :]) for cells in lines]
    print_table(lines[0], lines[1:], "tilewright's calls; the intervals hold all together, at 95%")
    noted = [c for c in found.changes if c.notes]
    if noted:
        print()
        for c in noted:
            print(f"{c.verdict}: {c.item}, {c.provider}: {'; '.join(c.notes)}")
    print()
    if found.drift is not None:
        print(
            f"the {len(found.peers)} times of peers, whose code is the same, are {found.drift:.2f}x those of before; "
            f"from run to run the same code moves by {100 * found.run_to_run:.1f}%"
        )
    if found.resolution is not None:
        print(f"half of the calls would have shown it if they had become {100 * found.resolution:.0f}% slower")
    print(_summary(found))
    if json is not None:
        sides = {
            name: {"environment": r.environment, "command": r.command, "settings": r.settings}
            for name, r in (("before", before), ("after", after))
        }
        write_json(json, {**sides, **found.to_json()})
    return 1 if found.regressions else 0


def _line(change: Change) -> tuple[str, ...]:
    from ..bench.timing import milliseconds

    before, after = (milliseconds(t) if t is not None else "" for t in (change.before, change.after))
    judged = str(change.judged or "")
    alone = f"{change.plain.value:.2f}x" if change.plain and change.against_peers else ""
    return change.item, change.provider.removeprefix("tilewright "), before, after, judged, alone, change.verdict


def _summary(found: Comparison) -> str:
    counts: dict[str, int] = {}
    for change in found.changes:
        counts[change.verdict] = counts.get(change.verdict, 0) + 1
    parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    number = len(found.regressions)
    return f"{number} regression{'s' * (number != 1)} at a threshold of {100 * found.threshold:.3g}%: {parts}"
