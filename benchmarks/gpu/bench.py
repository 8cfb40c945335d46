"""The stages of the benchmark: both backends beside other implementations, all in turns, on the same inputs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from tilewright.bench.items.rooflines import COPY, GEMM, ROOFLINE
from tilewright.bench.measure import OURS
from tilewright.bench.session import Session, add_rooflines

from .cases import workers
from .run import Outcome, Progress, Run

#: The strongest other implementations of each op that need no compiling, or are compiled already.
PEERS = {
    "roofline": ("torch", "product", "sum"),
    "attention": ("sdpa cudnn", "sdpa flash", "flash-attn 2", "flash-attn 3", "flash-attn 4"),
    "kvcache_attention": ("sdpa cudnn", "sdpa flash", "flash-attn 2", "flash-attn 3", "flashinfer"),
    "softmax": ("eager", "quack", "liger"),
    "ffn": ("eager", "cublaslt", "quack", "liger"),
    "overhead": ("eager",),
}
#: Those that torch compiles for every call, for seconds; and what takes their place in a rehearsal.
COMPILED, COMPILED_REHEARSED = {"attention": ("flex",)}, {"attention": ("sdpa math",)}

#: Of timing, for a call.
SECONDS_A_CALL, SECONDS_REHEARSED = 0.5, 0.01


def calls(run: Run) -> Outcome:
    return measured(run, "calls", PEERS)


def compiled(run: Run) -> Outcome:
    """These take turns with the others again: a ratio is of samples that belong together."""
    named = COMPILED_REHEARSED if run.rehearsal else COMPILED
    return measured(run, "compiled", {op: (*PEERS[op], *names) for op, names in named.items()}, named)


def everything(run: Run) -> Outcome:
    return measured(run, "long", {}, shapes="gpu-long")


def measured(
    run: Run,
    stage: str,
    peers: dict[str, Sequence[str]],
    compile_first: dict[str, Sequence[str]] | None = None,
    shapes: str = "gpu-first",
) -> Outcome:
    """peers: by op, beside ours; only these ops, and all of everything if there is none. compile_first: of them, those
    to be compiled by many processes before anything is timed."""
    ours = [OURS + b for b in run.backends]
    settings: dict[str, Any] = {
        "device": run.device,
        "backends": list(run.backends),
        "shapes": "tiny" if run.rehearsal else shapes,
        "seconds": SECONDS_REHEARSED if run.rehearsal else SECONDS_A_CALL,
    }
    shows: dict[str, Progress] = {}

    def show(done: int, of: int, what: str) -> None:
        title = "compile" if what == "compiling" else stage
        shows.setdefault(title, Progress(title, of))(done, what)

    session = Session(lambda env: run.worker(f"{stage}.log", env), settings, run.deadline, show)
    with contextlib.closing(session):
        items = [i for i in session.items() if not peers or i["op"] in peers]
        if run.sample:
            items = [i for op in peers for i in run.some([i for i in items if i["op"] == op])]
        excluded = {}
        if compile_first:
            session.settings = {**settings, "providers": [p for names in compile_first.values() for p in names]}
            names = [i["name"] for i in items if i["op"] in compile_first]
            excluded = session.compile_all(names, time.monotonic() + run.left() / 2, workers(run))
        for number, item in enumerate(items):
            show(number, len(items), item["name"])
            session.settings = {**settings, "providers": [*ours, *peers[item["op"]]] if peers else []}
            session.rows += session.measure_item(item["name"], dict(excluded.get(item["name"], {})))
            run.save(stage, judged(run, session.rows))
    return judged(run, session.rows)


def judged(run: Run, rows: list[dict[str, Any]]) -> Outcome:
    """It fails by what tilewright's rows say and by a fault of a measurement; a peer may fail."""
    roofs = [] if any(r["item"].startswith(ROOFLINE) for r in rows) else roofs_of(run)
    rows = add_rooflines([*roofs, *rows])[len(roofs) :]
    wrong = [r for r in rows if _counts(r) and r["status"] not in ("timed", "not reached")]
    faults = [] if run.rehearsal else [r for r in rows if "fault" in r]  # whose rooflines are none
    missed = sum(r["status"] == "not reached" for r in rows)
    timed = sum(r["status"] == "timed" for r in rows)
    problems = [f"{r['item']}, {r['provider']}: {r['status']}: {r['reason']}" for r in wrong]
    problems += [f"{r['item']}, {r['provider']}: {r['fault']}" for r in faults]
    told = f"{timed} rows timed, {len(rows) - timed - missed} not, {missed} calls not reached"
    status = "failed" if problems or not timed else "partial" if missed else "passed"
    return Outcome(status, told, problems, {"rows": without_figures(rows) if run.rehearsal else rows})


def roofs_of(run: Run) -> list[dict[str, Any]]:
    """What the machine can do at most: the first of these stages has measured it."""
    found = run.saved("calls")
    return [r for r in found.data["rows"] if r["item"].startswith(ROOFLINE)] if found and "rows" in found.data else []


def _counts(row: dict[str, Any]) -> bool:
    return row["provider"].startswith((OURS, "all")) or row["item"] in (GEMM, COPY)


#: What is left of a row whose times say nothing.
_KEPT = ("item", "provider", "op", "mode", "dtype", "label", "unit", "status", "reason", "error", "limit")


def without_figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A rehearsal's: the clock has seen a CPU that computed something else."""
    kept = [{n: r[n] for n in _KEPT if n in r} for r in rows]
    return [{**r, "status": "rehearsed"} if r["status"] == "timed" else r for r in kept]
