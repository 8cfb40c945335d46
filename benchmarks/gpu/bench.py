"""The benchmark's stage: both backends beside every peer that is installed."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from tilewright.bench.items.rooflines import COPY, GEMM
from tilewright.bench.measure import OURS
from tilewright.bench.session import Session, add_rooflines, compilers

from .run import Outcome, Run
from .stages import Progress

#: Of the stage's time for compiling, at most.
SHARE_TO_COMPILE = 0.4

#: On the CPU: nothing that is compiled takes less than its rehearsal may.
REHEARSED = ["torch", "eager", "sdpa flash", "sdpa math", "sdpa padded"]


def bench(run: Run, seconds: float, **options: Any) -> Outcome:
    """options: of measure.Bench, beside those that the run decides."""
    shapes = "gpu-long" if run.long else "gpu"
    settings: dict[str, Any] = {"device": run.device, "backends": list(run.backends), "shapes": shapes}
    if run.rehearsal:
        providers = [*(OURS + b for b in run.backends), *REHEARSED]
        settings.update(shapes="tiny", seconds=0.01, providers=providers)
    settings.update(options)
    shows: dict[str, Progress] = {}

    def show(done: int, of: int, what: str) -> None:
        title = "compile" if what == "compiling" else "measure"
        shows.setdefault(title, Progress(title, of))(done, what)

    session = Session(lambda env: run.worker("bench.log", env), settings, run.until(seconds), show)
    with contextlib.closing(session):
        names = [i["name"] for i in session.items()]
        excluded = {}
        if not run.rehearsal:
            share = time.monotonic() + SHARE_TO_COMPILE * (session.deadline - time.monotonic())
            excluded = session.compile_all(names, share, compilers())
        for _ in session.measure_all(names, excluded):
            pass
    return judged(add_rooflines(session.rows), faults_count=not run.rehearsal)


def judged(rows: list[dict[str, Any]], faults_count: bool = True) -> Outcome:
    """It fails by what tilewright's rows say, by a fault of a measurement and by a missing roofline; a peer may fail.

    faults_count: not in a rehearsal, whose rooflines are none.
    """
    ours = [r for r in rows if r["provider"].startswith((OURS, "all")) or r["item"] in (GEMM, COPY)]
    wrong = [r for r in ours if r["status"] not in ("timed", "not reached")]
    faults = [r for r in rows if "fault" in r and faults_count]
    missed = sum(r["status"] == "not reached" for r in rows)
    timed = sum(r["status"] == "timed" for r in rows)
    reasons = [f"{timed} rows timed, {len(rows) - timed - missed} not, {missed} items not reached"]
    reasons += [f"{r['item']}, {r['provider']}: {r['status']}: {r['reason'][:150]}" for r in wrong[:4]]
    reasons += [f"{r['item']}, {r['provider']}: {r['fault']}" for r in faults[:4]]
    roofs = {r["item"] for r in rows if r["status"] == "timed"}
    status = "failed" if wrong or faults or not {GEMM, COPY} <= roofs else "partial" if missed else "passed"
    return Outcome(status, "; ".join(reasons), {"rows": rows})
