"""The stages that run verification cases, each in a worker: a case that crashes or hangs costs its worker."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

from .imports import facts
from .run import Outcome, Progress, Run, process, processors, why

#: Of every op, usual and unusual cases, whose inputs are the same on every device (dropout's seed is drawn on the
#: device).
SMOKE = (
    "attention/gqa/bfloat16",
    "attention/causal_bottom_right_130x70/float16",
    "attention/head_dim_50_3/float32",
    "attention/mask_float_bhqk/bfloat16",
    "varlen_attention/causal_bottom_right/bfloat16",
    "kvcache_attention/paged_splits_2/bfloat16",
    "kvcache_attention/contiguous_long/float32",
    "softmax/width_100/bfloat16",
    "log_softmax/width_100/float32",
    "ffn/swiglu/bfloat16",
    "ffn/rows_1/float16",
    "ffn/gelu_tanh/float32",
)

#: A case that has to compile its kernels takes seconds for each, on a processor of its own.
SECONDS_A_CASE = 40.0

#: Each process has a CUDA context of its own, of half a gigabyte.
MOST_WORKERS = 14


def smoke(run: Run) -> Outcome:
    return verify(run, "smoke", run.some(SMOKE), run.backends)


def cuda(run: Run) -> Outcome:
    return verify(run, "cuda", run.some(shuffled(facts(run)["cases"])), ("cuda",))


def triton(run: Run) -> Outcome:
    return verify(run, "triton", run.some(shuffled(facts(run)["cases"])), ("triton",))


def shuffled(cases: Sequence[str]) -> list[str]:
    """In an order of which any first part is a sample of all ops and options."""
    return sorted(cases, key=lambda name: zlib.crc32(name.encode()))


def workers(run: Run) -> int:
    """How many at the same time. Two processors stay free, where there are so many."""
    return max(1, min(processors() - (2 if processors() > 3 else 1), MOST_WORKERS))


def verify(run: Run, stage: str, cases: Sequence[str], backends: Sequence[str]) -> Outcome:
    records: list[dict[str, Any]] = []
    requests = [{"do": "case", "case": c, "backend": b} for c in cases for b in backends]
    show, saved = Progress(stage, len(requests)), time.monotonic()

    def finished(request: dict[str, Any], answer: Any) -> None:
        nonlocal saved
        records.append(record_of(request, answer))
        show(len(records), f"{sum(r['status'] == 'failed' for r in records)} failed")
        if time.monotonic() - saved > 2.0:
            saved = time.monotonic()
            run.save(stage, judged(records, len(requests) - len(records)))

    left = process.run_pool(
        lambda: run.worker(f"{stage}.log", {"OMP_NUM_THREADS": "1"}),
        workers(run),
        requests,
        SECONDS_A_CASE,
        run.deadline,
        finished,
    )
    return judged(records, left)


def record_of(request: dict[str, Any], answer: Any) -> dict[str, Any]:
    started = {"case": request["case"], "backend": request["backend"], "status": "failed", "problems": []}
    record: dict[str, Any] = answer.result.get("record", started)
    problem = why(answer)
    if problem:
        record = {**record, "status": "failed", "problems": [*record["problems"], problem]}
    return record


def judged(records: Sequence[dict[str, Any]], left: int) -> Outcome:
    counts = {s: sum(r["status"] == s for r in records) for s in ("passed", "failed", "refused")}
    told = ", ".join(f"{n} {s}" for s, n in counts.items()) + (f", {left} not reached" if left else "")
    problems = [
        f"{r['case']} on {r['backend']}: {'; '.join(r['problems'])}" for r in records if r["status"] == "failed"
    ]
    data = {**counts, "not_reached": left, "records": [r for r in records if r["status"] != "passed"]}
    data["worst"] = worst_of(records)
    status = "failed" if problems or not records else "partial" if left else "passed"
    return Outcome(status, told, problems, data)


def worst_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each op, the tensor that came closest to its limit."""
    worst: dict[str, Any] = {}
    for record in records:
        for t in record.get("tensors", ()):
            used = max(_share(t["max_error"], t["max_limit"]), _share(t["mean_error"], t["mean_limit"]))
            if used >= worst.get(record["op"], {"of_limit": 0.0})["of_limit"]:
                worst[record["op"]] = {"case": record["case"], "tensor": t["tensor"], "of_limit": round(used, 3)}
    return worst


def _share(error: float | None, limit: float | None) -> float:
    return error / limit if error is not None and limit else 0.0
