"""A fixed list of other configurations of the hottest Triton kernels, each beside the one in force: what a search would
try first. What is faster here is for the table, with these figures beside it."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import report
from .run import Outcome, Progress, Run, why


class Candidate(NamedTuple):
    """kernel, key, blocks by name, warps, stages: as in triton_kernels/*_table.py."""

    kernel: str
    key: str
    blocks: dict[str, int]
    warps: int
    stages: int

    def __str__(self) -> str:
        sizes = " ".join(f"{n.removeprefix('BLOCK_').lower()}{v}" for n, v in self.blocks.items())
        return f"{sizes} w{self.warps} s{self.stages}"


def _attention(kernel: str, key: str, *tiles: tuple[int, int, int, int]) -> list[Candidate]:
    """(BLOCK_M, BLOCK_N, warps, stages) each."""
    return [Candidate(f"attention_{kernel}", key, {"BLOCK_M": m, "BLOCK_N": n}, w, s) for m, n, w, s in tiles]


def _product(kernel: str, *tiles: tuple[int, int, int, int, int, int, int]) -> list[Candidate]:
    """(BLOCK_M, BLOCK_N, BLOCK_K, warps, stages, programs for a multiprocessor, pieces) each, by TMA."""
    return [
        Candidate(
            f"ffn_{kernel}",
            "half_tma",
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8, "PROGRAMS": programs, "PIECES": pieces},
            w,
            s,
        )
        for m, n, k, w, s, programs, pieces in tiles
    ]


def _softmax(kernel: str, width: int, *tiles: tuple[int, int]) -> list[Candidate]:
    """(rows, warps) each."""
    return [Candidate(f"softmax_{kernel}", str(width), {"ROWS": r, "COLUMNS": width}, w, 1) for r, w in tiles]


#: The most wanted first: what time does not allow is missing from the end.
CANDIDATES: tuple[Candidate, ...] = (
    *_attention("forward", "2,128", (128, 64, 8, 3), (128, 64, 4, 2), (64, 128, 4, 2), (64, 64, 4, 3)),
    *_attention("backward_keys", "2,128", (64, 128, 8, 2), (64, 64, 8, 2), (32, 128, 8, 3), (64, 64, 4, 2)),
    *_attention("backward_rows", "2,128", (128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 2), (64, 128, 8, 2)),
    *_attention("forward", "2,64", (128, 64, 8, 3), (128, 128, 8, 3), (128, 64, 4, 3), (64, 128, 4, 2)),
    *_product("in", (128, 256, 64, 8, 4, 1, 4), (128, 128, 64, 8, 4, 0, 2), (128, 128, 64, 8, 4, 1, 4)),
    *_product("out", (128, 256, 64, 8, 4, 0, 4), (128, 128, 64, 8, 4, 1, 2), (128, 128, 64, 8, 4, 0, 1)),
    *_attention("decode", "2,128", (16, 64, 4, 3), (16, 64, 4, 2), (16, 128, 8, 2), (16, 32, 4, 4)),
    *_attention("forward", "2,256", (128, 32, 8, 2), (64, 64, 4, 2), (128, 64, 8, 1)),
    *_product("product", (128, 256, 64, 8, 3, 1, 4), (128, 128, 64, 8, 4, 1, 2)),
    *_softmax("forward", 16384, (1, 16), (1, 8)),
    *_softmax("forward", 1024, (1, 2), (4, 8)),
)

#: Of a rehearsal, whose calls are tiny.
TINY = (
    *_attention("forward", "2,16", (128, 64, 8, 2)),
    *_softmax("forward", 1024, (1, 4)),
)

#: Of timing, for a candidate beside what is in force; and what one may take in all.
SECONDS, LIMIT = 0.4, 20.0


def candidates(run: Run) -> Outcome:
    rows: list[dict[str, Any]] = []
    listed = run.some(TINY if run.rehearsal else CANDIDATES)
    show, worker = Progress("candidates", len(listed)), run.worker("candidates.log")
    try:
        for candidate in listed:
            if run.left() <= 0:
                break
            show(len(rows), f"{candidate.kernel} {candidate}")
            request = {"do": "candidate", "tiny": run.rehearsal, "seconds": SECONDS, **candidate._asdict()}
            answer = worker.ask(request, min(LIMIT, max(run.left(), 1.0)))
            row = {"kernel": candidate.kernel, "key": candidate.key, "config": str(candidate), **answer.result}
            row.pop("exiting", None)
            if why(answer):
                row.update(outcome="failed", reason=why(answer))
            rows.append(without_figures(row) if run.rehearsal else row)
            run.save("candidates", judged(rows, len(listed) - len(rows)))
    finally:
        worker.close()
    return judged(rows, len(listed) - len(rows))


def without_figures(row: dict[str, Any]) -> dict[str, Any]:
    """A rehearsal's."""
    outcome = "rehearsed" if row.get("outcome") in ("faster", "not faster") else row.get("outcome")
    return {**{n: row[n] for n in ("kernel", "key", "config", "reason") if n in row}, "outcome": outcome}


def judged(rows: list[dict[str, Any]], left: int) -> Outcome:
    """A candidate that is refused or slower is a finding; one that hangs, crashes or gives other results is wrong."""
    problems = [f"{r['kernel']} {r['key']} {r['config']}: {r['reason']}" for r in rows if r["outcome"] in WRONG]
    counts = {o: sum(r["outcome"] == o for r in rows) for o in dict.fromkeys(r["outcome"] for r in rows)}
    told = ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) + (f", {left} not reached" if left else "")
    status = "failed" if problems or not rows else "partial" if left else "passed"
    return Outcome(status, told, problems, {"trials": rows, "tables": [table(rows)]})


WRONG = ("failed", "different")


def table(rows: list[dict[str, Any]]) -> str:
    """Those that are faster; of a kernel and key that has none, the fastest."""
    shown = []
    for key in dict.fromkeys((r["kernel"], r["key"]) for r in rows):
        timed = [r for r in rows if (r["kernel"], r["key"]) == key and r.get("seconds")]
        timed.sort(key=lambda r: r["seconds"] / r["current_seconds"])
        shown += [r for r in timed if r["outcome"] == "faster"] or timed[:1]
    lines = [
        (
            f"{r['kernel']} {r['key']}",
            r["config"],
            f"{r['current_seconds'] / r['seconds']:.2f}x",
            f"{1e6 * r['seconds']:.0f} us, in force {1e6 * r['current_seconds']:.0f}",
            r["outcome"],
        )
        for r in shown
    ]
    return report.table(("candidate", "", "in force / this", "", ""), lines) if lines else ""
