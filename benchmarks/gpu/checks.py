"""What verification cases do not show: TMA on views of a fused projection, grids of many planes, streams, CUDA graphs,
and results that must not change from run to run."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .cases import workers
from .run import Outcome, Progress, Run, process, why

#: A case of each op, without dropout: its numbers change with every call.
CASES = (
    "attention/gqa/bfloat16",
    "varlen_attention/causal_bottom_right/bfloat16",
    "kvcache_attention/paged_splits_2/bfloat16",
    "softmax/width_100/bfloat16",
    "log_softmax/width_100/float32",
    "ffn/swiglu/bfloat16",
)

#: Calls of verify/planes.py.
PLANES = (
    "attention", "mask gradient", "varlen_attention", "kvcache_attention", "many new positions", "softmax",
    "softmax across", "log_softmax", "ffn",
)  # fmt: skip

HEAD_DIMS = ("64", "128")

#: Items of the benchmark, large enough to fill a GPU; and such as a rehearsal has. Of each, so many results must equal
#: the first one bit by bit.
RERUNS = 20
RERUN = (
    "attention forward d128 causal S4096",
    "attention backward d128 causal S4096",
    "decode B8 KV16384",
    "softmax forward 131072",
    "ffn backward 768/3072 gelu_tanh rows 32768",
)
RERUN_TINY = ("attention forward d16 causal S32 gqa 4/2 float32", "softmax forward 100 float32")

SECONDS = 40.0


def checks(run: Run) -> Outcome:
    """Each a request to a worker. A capture in a process that has launched nothing yet has a worker of its own."""
    records: list[dict[str, Any]] = []
    asked, lock = requests(run), threading.Lock()
    show = Progress("checks", len(asked))

    def finished(request: dict[str, Any], answer: Any) -> None:
        with lock:
            records.append(record_of(request, answer))
            show(len(records))
            run.save("checks", judged(records, len(asked) - len(records)))

    def alone(request: dict[str, Any]) -> None:
        worker = run.worker("checks.log")
        try:
            if run.left() > 1.0:
                finished(request, worker.ask(request, min(SECONDS, run.left())))
        finally:
            worker.close()

    fresh = [r for r in asked if r["check"] == "cold graph"]
    others = [r for r in asked if r["check"] != "cold graph"]
    with ThreadPoolExecutor(max(1, min(len(fresh), workers(run) // 2))) as pool:
        ended = [pool.submit(alone, request) for request in fresh]
        count = max(1, workers(run) // 2)
        process.run_pool(lambda: run.worker("checks.log"), count, others, SECONDS, run.deadline, finished)
        for one in ended:
            one.result()
    return judged(records, len(asked) - len(records))


def requests(run: Run) -> list[dict[str, Any]]:
    subjects = {
        "fused by TMA": HEAD_DIMS,
        "planes": PLANES,
        "stream": CASES,
        "graph": CASES,
        "cold graph": CASES,
        "reruns": RERUN_TINY if run.rehearsal else RERUN,
    }
    return [
        {"do": "check", "check": check, "subject": subject, "backend": backend, "times": RERUNS}
        for check, of in subjects.items()
        for subject in run.some(of)
        for backend in run.backends
    ]


def record_of(request: dict[str, Any], answer: Any) -> dict[str, Any]:
    """status: "passed" or "failed". words: what was found; of a capture without a call before it, also what the
    library said if it cannot be done."""
    named = {n: request[n] for n in ("check", "subject", "backend")}
    problem = why(answer)
    words, right = problem or answer.result.get("words", "no answer"), not problem and answer.result.get("right", False)
    return {**named, "status": "passed" if right else "failed", "words": words if right else f"FAILED: {words}"}


def judged(records: list[dict[str, Any]], left: int) -> Outcome:
    of = Counter(r["check"] for r in records)
    good = Counter(r["check"] for r in records if r["status"] == "passed")
    told = ", ".join(f"{check} {good[check]}/{n}" for check, n in of.items())
    told += f", {left} not reached" if left else ""
    noted = [
        f"{r['check']}, {r['subject']} on {r['backend']}: {r['words']}"
        for r in records
        if r["status"] == "failed" or "cannot" in r["words"]
    ]
    wrong = any(r["status"] == "failed" for r in records) or not records
    status = "failed" if wrong else "partial" if left else "passed"
    # A failure first.
    return Outcome(status, told, sorted(noted, key=lambda line: "FAILED" not in line), {"records": records})
