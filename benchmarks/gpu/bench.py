"""The benchmark's stage: compile everything in parallel, then measure one item after the other in one process."""

from __future__ import annotations

import time
from typing import Any

from .process import Answer, Worker, run_pool
from .run import OURS, Outcome, Run
from .stages import Progress, workers

GEMM, COPY = "roofline gemm", "roofline copy"

SECONDS_TO_COMPILE = 120.0
SECONDS_AN_ITEM = 75.0
#: Of the stage's time for compiling, at most.
SHARE_TO_COMPILE = 0.4

#: On the CPU: nothing that is compiled takes less than its rehearsal may.
REHEARSED = ["torch", "sdpa flash", "sdpa cudnn", "liger", "quack"]

Excluded = dict[str, dict[str, str]]


def bench(run: Run, seconds: float, **options: Any) -> Outcome:
    """options: of measure.Bench, beside those that the run decides."""
    deadline = run.until(seconds)
    settings: dict[str, Any] = {"device": run.device, "backends": list(run.backends), "shapes": "full", **options}
    if run.rehearsal:
        settings = {
            **settings,
            "shapes": "tiny",
            "seconds": 0.01,
            "providers": [*(OURS + b for b in run.backends), *REHEARSED],
        }
        settings.update(options)
    worker = run.worker("bench.log")
    try:
        names = list_items(worker, settings["shapes"])
        excluded: dict[str, Excluded] = {}
        if not run.rehearsal:
            share = time.monotonic() + SHARE_TO_COMPILE * (deadline - time.monotonic())
            excluded = compile_all(run, names, settings, share)
        rows = measure_all(worker, names, settings, excluded, deadline)
    finally:
        worker.close()
    return judged(add_rooflines(rows), faults_count=not run.rehearsal)


def list_items(worker: Worker, shapes: str) -> list[str]:
    answer = worker.ask({"do": "items", "shapes": shapes}, 120.0)
    if "items" not in answer.result:
        raise RuntimeError(f"the items cannot be listed: {answer.result.get('raised') or answer.reason}")
    found: list[str] = answer.result["items"]
    return found


def compile_all(run: Run, names: list[str], settings: dict[str, Any], deadline: float) -> dict[str, Excluded]:
    """Fill the caches of Triton and Inductor. Answers what crashed or hung, which will not be tried again."""
    excluded: dict[str, Excluded] = {}
    show, done = Progress("compile", len(names)), 0

    def finished(request: dict[str, Any], answer: Answer) -> None:
        nonlocal done
        done += 1
        culprit = _culprit(answer)
        if answer.ending != "answered" and culprit is not None:
            row = {"status": answer.ending, "reason": f"while compiling: {answer.reason}"}
            excluded.setdefault(request["item"], {})[culprit] = row
        show(done)

    requests = [{"do": "item", "item": n, "bench": {**settings, "timed": False}, "without": {}} for n in names]
    # A worker for each processor already: by default every one of them would start as many of its own.
    alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    run_pool(lambda: run.worker("bench.log", alone), workers(), requests, SECONDS_TO_COMPILE, deadline, finished)
    return excluded


def _culprit(answer: Answer) -> str | None:
    provider: str | None = answer.progress[-1]["provider"] if answer.progress else None
    return provider


def measure_all(
    worker: Worker, names: list[str], settings: dict[str, Any], excluded: dict[str, Excluded], deadline: float
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    show = Progress("measure", len(names))
    for done, name in enumerate(names):
        if time.monotonic() >= deadline:
            rows += [{"item": n, "provider": "all", **NOT_REACHED} for n in names[done:]]
            break
        rows += measure_item(worker, name, settings, dict(excluded.get(name, {})), deadline)
        show(done + 1, name)
    return rows


NOT_REACHED = {"status": "not reached", "reason": "the benchmark's time was over"}


def measure_item(
    worker: Worker, name: str, settings: dict[str, Any], without: Excluded, deadline: float
) -> list[dict[str, Any]]:
    """A provider that crashes or hangs gets its row, and the others are measured without it."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return [{"item": name, "provider": "all", **NOT_REACHED}, *_rows_of(name, without)]
        request = {"do": "item", "item": name, "bench": settings, "without": without}
        limit = min(SECONDS_AN_ITEM, left)
        answer = worker.ask(request, limit)
        if answer.ending == "hung" and limit < SECONDS_AN_ITEM:
            return [{"item": name, "provider": "all", **NOT_REACHED}, *_rows_of(name, without)]
        broken = answer.result.get("device")
        if answer.ending == "answered" and not broken:
            if "rows" in answer.result:
                found: list[dict[str, Any]] = answer.result["rows"]
                return found
            return [{"item": name, "provider": "all", "status": "raised", "reason": answer.result["raised"]}]
        # Where the context broke, the first provider that raised is to blame: all later ones raise as well.
        raised = [r["provider"] for r in answer.result.get("rows", ()) if r["status"] == "raised"]
        culprit = next((p for p in raised if p not in without), None) if broken else _culprit(answer)
        reason = {"status": "crashed" if broken else answer.ending, "reason": broken or answer.reason}
        if culprit is None or culprit in without:
            return [{"item": name, "provider": "all", **reason}, *_rows_of(name, without)]
        without[culprit] = reason


def _rows_of(name: str, without: Excluded) -> list[dict[str, Any]]:
    return [{"item": name, "provider": p, **r} for p, r in without.items()]


def add_rooflines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each result's share of what the same run measured for a matrix product or a copy; above 100% is a fault."""
    roofs = {r["unit"]: r["result"] for r in rows if r["item"] in (GEMM, COPY) and r["status"] == "timed"}
    for row in rows:
        if row["status"] == "timed" and row["unit"] in roofs and row["item"] not in (GEMM, COPY):
            row["of_roofline"] = row["result"] / roofs[row["unit"]]
            if row["of_roofline"] > 1.0:
                row["fault"] = f"{100 * row['of_roofline']:.0f}% of the roofline: the measurement is wrong"
    return rows


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
