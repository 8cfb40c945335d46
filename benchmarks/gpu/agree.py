"""The emulator beside the GPU on the same inputs, and results of many runs beside the first one's."""

from __future__ import annotations

import time
from typing import Any

from tilewright.bench.measure import OURS
from tilewright.bench.process import Answer, Worker

from .run import Outcome, Run
from .stages import Progress

#: Of every op, cases whose inputs are the same on every device (dropout's seed is drawn on the device).
COMPARED = (
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

#: Of each benchmark item, the first call's result against so many more, bit by bit.
RERUNS = 1000
RERUN = (
    "attention forward d128 causal S4096",
    "attention backward d128 causal S4096",
    "decode B8 KV16384",
    "softmax forward 262144",
    "ffn forward 768/3072 gelu_tanh rows 32768",
)
RERUN_TINY = ("attention forward d16 causal S32 gqa 4/2 float32", "softmax forward 100 float32")


def agree(run: Run, seconds: float) -> Outcome:
    deadline = run.until(seconds)
    rows = compare(run, deadline) + rerun(run, deadline)
    wrong = [r for r in rows if r["status"] == "failed"]
    missed = [r for r in rows if r["status"] == "not reached"]
    same = [r for r in rows if r["status"] == "passed"]
    compared = sum("distance" in r for r in same)
    reasons = [f"{compared} of {len(COMPARED)} cases agree with the emulator"]
    reasons.append(f"{len(same) - compared} calls bitwise equal over {RERUNS if not run.rehearsal else 10} reruns")
    reasons += [f"{r['what']}, {r['backend']}: {r['reason'][:150]}" for r in wrong[:4]]
    reasons += [f"{len(missed)} not reached"] * bool(missed)
    return Outcome("failed" if wrong else "partial" if missed else "passed", "; ".join(reasons), {"rows": rows})


def compare(run: Run, deadline: float) -> list[dict[str, Any]]:
    """A row for each case: the distance of the emulator's results from those of the kernels where they live."""
    backend = "cuda" if "cuda" in run.backends else run.backends[0]
    here = run.worker("agree.log")
    emulator = run.worker("agree.log", {"TILEWRIGHT_CUDA_EMULATE": "1", "CUDA_VISIBLE_DEVICES": ""})
    show, rows = Progress("compare", len(COMPARED)), []
    try:
        for done, case in enumerate(COMPARED):
            show(done, case)
            row: dict[str, Any] = {"what": case, "backend": backend}
            rows.append(row)
            if time.monotonic() >= deadline:
                row.update(status="not reached", reason="the time was over")
                continue
            files = {"emulator": run.out / "emulated.pt", "here": run.out / "here.pt"}
            asked = (("emulator", emulator, "cuda"), ("here", here, backend))
            for name, worker, by in asked:
                answer = _ask(worker, {"do": "outputs", "case": case, "backend": by, "to": str(files[name])}, deadline)
                if "written" not in answer.result:
                    row.update(status="failed", reason=f"{name}: {_why(answer)}")
                    break
            else:
                request = {"do": "distance", "files": [str(f) for f in files.values()]}
                answer = _ask(here, request, deadline)
                row.update(answer.result if "status" in answer.result else {"status": "failed", "reason": _why(answer)})
                row.pop("done", None)
                row.pop("exiting", None)
            for file in files.values():
                file.unlink(missing_ok=True)
        show(len(COMPARED))
    finally:
        here.close()
        emulator.close()
    return rows


def rerun(run: Run, deadline: float) -> list[dict[str, Any]]:
    """A row for each item and backend."""
    worker = run.worker("agree.log")
    rows = []
    settings = {"device": run.device, "shapes": "tiny" if run.rehearsal else "gpu", "timed": False}
    names = RERUN_TINY if run.rehearsal else RERUN
    try:
        for what in names:
            for backend in run.backends:
                row: dict[str, Any] = {"what": what, "backend": backend}
                rows.append(row)
                if time.monotonic() >= deadline:
                    row.update(status="not reached", reason="the time was over")
                    continue
                request = {
                    "do": "reruns",
                    "item": what,
                    "provider": OURS + backend,
                    "times": 10 if run.rehearsal else RERUNS,
                    "bench": {**settings, "backends": [backend]},
                }
                answer = _ask(worker, request, deadline)
                if "different" not in answer.result:
                    row.update(status="failed", reason=_why(answer))
                    continue
                different = answer.result["different"]
                row.update(times=request["times"], different=different, status="failed" if different else "passed")
                row["reason"] = f"{different} of {request['times']} results differ from the first" if different else ""
    finally:
        worker.close()
    return rows


def _ask(worker: Worker, request: dict[str, Any], deadline: float) -> Answer:
    return worker.ask(request, max(1.0, min(60.0, deadline - time.monotonic())))


def _why(answer: Answer) -> str:
    return str(answer.reason or answer.result.get("raised") or answer.result.get("device") or "no answer")
