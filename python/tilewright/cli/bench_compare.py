"""``tilewright bench --compare BEFORE AFTER`` and ``tilewright bench --base REV``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import UserError, print_table, progress_bar, user_errors, write_json

if TYPE_CHECKING:
    from ..bench.base import Base
    from ..bench.compare import Change, Comparison
    from ..bench.session import Session
    from ..bench.summary import Result

COLUMNS = ("call", "provider", "before", "after", "time after / before", "alone", "verdict")


def compare_files(before: Path, after: Path, threshold: float, json: Path | None) -> int:
    """The exit code: 1 if a call of tilewright is slower by more than the threshold (0.05 is 5%), broken, or needs more
    memory by as much."""
    from ..bench.compare import compare
    from ..bench.summary import read

    with user_errors(ValueError):
        results = [read(path) for path in (before, after)]
        found = compare(*results, threshold)
    for name, path, result in zip(("before", "after"), (before, after), results, strict=True):
        print(f"{name}: {path}, {_described(result)}")
    return _report(found, *results, json)


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
    """Build the commit, and measure it and the running package in turns. The exit code is as of compare_files; 130 after
    Ctrl-C, which keeps what was measured, if that holds no regression.

    settings: of measure.Bench. ops, dtypes, patterns: which calls. budget: seconds of measuring; what is left then is
    "not measured". Only tilewright is measured, unless the settings name providers.
    """
    from ..bench.base import checkout, newer_sources, prepare, resolve, targets_of
    from ..bench.compare import compare
    from ..bench.measure import OURS

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
    results = _measure(base, settings, ops, dtypes, patterns, budget)
    print(f"after: {_described(results[1])}")
    with user_errors(ValueError, exit_code=1):
        found = compare(*results, threshold, paired=True)
    code = _report(found, *results, json)
    return code if code or results[1].complete else 130


def _base_errors(rev: str) -> Any:
    from contextlib import contextmanager

    from ..bench.base import BaseError

    @contextmanager
    def caught() -> Any:
        try:
            yield
        except (BaseError, OSError) as error:
            raise UserError(f"--base {rev}: {error}", 1) from error

    return caught()


def _measure(
    base: Base,
    settings: dict[str, Any],
    ops: tuple[str, ...],
    dtypes: list[str] | None,
    patterns: list[str] | None,
    budget: float,
) -> tuple[Result, Result]:
    from ..bench.process import Worker
    from ..bench.rounds import measure_in_turns
    from ..bench.session import Session
    from ..bench.summary import Result, is_roofline
    from .bench import choose, repeat_command

    folder = base.log.parent
    serve = [sys.executable, "-c", "from tilewright.bench.rounds import serve; serve()"]
    end = time.monotonic() + budget

    def session(worker: Any) -> Session:
        return Session(worker, settings, end, lambda done, of, what: None)

    before = session(lambda extra: base.worker(folder / "before.log", {**os.environ, **extra}))
    after = session(lambda extra: Worker(serve, folder / "after.log", {**os.environ, **extra}, folder))
    sides: tuple[list[Any], list[Any]] = ([], [])
    complete = True
    try:
        names = [i["name"] for i in choose(after.items(ops), dtypes, patterns) if not is_roofline(i["name"])]
        try:
            before.items(ops)
        except RuntimeError as error:
            raise UserError(
                f"--base {base.commit[:9]}: this checkout's benchmark does not run on it: {error}", 1
            ) from None
        environments = [{**before.environment(), "commit": base.commit}, after.environment()]
        with progress_bar("measuring", len(names)) as progress:
            try:
                if settings["device"] != "cpu":
                    _compile((before, after), names)
                for done, rows in enumerate(measure_in_turns(before, after, names), 1):
                    progress(done, names[done - 1])
                    for side, found in zip(sides, rows, strict=True):
                        side += found
            except KeyboardInterrupt:
                complete = False
    finally:
        before.close()
        after.close()
    made = [
        Result(e, repeat_command(sys.argv), settings, rows, complete)
        for e, rows in zip(environments, sides, strict=True)
    ]
    return made[0], made[1]


def _compile(sessions: Sequence[Session], names: list[str]) -> None:
    """What crashes here crashes again when it is measured, and gets its row then."""
    from .bench import COMPILERS

    workers = max(1, min(COMPILERS, (os.cpu_count() or 2) - 2))
    for session in sessions:
        session.compile_all(names, session.deadline, workers)


def _described(result: Result) -> str:
    environment = result.environment
    commit = environment.get("commit") or "no commit"
    changed = " with changes" if commit.endswith("+changes") else ""
    return f"{commit[:9]}{changed}, {str(environment.get('date', ''))[:10]}".rstrip(", ")


def _report(found: Comparison, before: Result, after: Result, json: Path | None) -> int:
    for text in found.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print()
    print_table(COLUMNS, [_line(c) for c in found.changes], "tilewright's calls; intervals hold all together, at 95%")
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
    return f"{len(found.regressions)} regressions at a threshold of {100 * found.threshold:.3g}%: {parts}"
