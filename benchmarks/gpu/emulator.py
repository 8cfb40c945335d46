"""The CUDA kernels in the emulator beside the same kernels on the GPU, on the same inputs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .cases import SMOKE
from .imports import facts
from .run import Outcome, Progress, Run, why

#: Pairs of processes at the same time.
PAIRS = 4


def emulator(run: Run) -> Outcome:
    if not facts(run)["emulator"]:
        return Outcome("not run", "this build of the package has no emulator")
    rows: list[dict[str, Any]] = []
    cases, lock = run.some(SMOKE), threading.Lock()
    waiting, show = list(reversed(cases)), Progress("emulator", len(cases))

    def serve(number: int) -> None:
        here = run.worker("emulator.log")
        emulated = run.worker("emulator.log", {"TILEWRIGHT_CUDA_EMULATE": "1", "CUDA_VISIBLE_DEVICES": ""})
        try:
            while run.left() > 1.0:
                with lock:
                    if not waiting:
                        return
                    case = waiting.pop()
                row = {"case": case, **compare(run, case, here, emulated, number)}
                with lock:
                    rows.append(row)
                    show(len(rows), case)
                    run.save("emulator", judged(rows, len(cases)))
        finally:
            here.close()
            emulated.close()

    count = 1 if run.rehearsal else PAIRS
    with ThreadPoolExecutor(count) as pool:
        for ended in [pool.submit(serve, number) for number in range(count)]:
            ended.result()
    return judged(rows, len(cases))


def compare(run: Run, case: str, here: Any, emulated: Any, number: int) -> dict[str, Any]:
    """The distance of the emulator's results from those of the GPU."""
    files = {"emulator": run.work / f"emulated-{number}.pt", "GPU": run.work / f"here-{number}.pt"}
    try:
        for name, worker in (("emulator", emulated), ("GPU", here)):
            request = {"do": "outputs", "case": case, "backend": "cuda", "to": str(files[name])}
            answer = worker.ask(request, max(1.0, run.left()))
            if "written" not in answer.result:
                return {"status": "failed", "reason": f"on the {name}: {why(answer)}"}
        answer = here.ask({"do": "distance", "files": [str(f) for f in files.values()]}, max(1.0, run.left()))
        named = ("status", "reason", "distance", "equal")
        found = {n: answer.result[n] for n in named if n in answer.result}
        return found if "status" in found else {"status": "failed", "reason": why(answer)}
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


def judged(rows: list[dict[str, Any]], cases: int) -> Outcome:
    problems = [f"{r['case']}: {r['reason']}" for r in rows if r["status"] != "passed"]
    left = cases - len(rows)
    told = f"{len(rows) - len(problems)} of {cases} cases within rounding"
    told += f", {left} not reached" if left else ""
    status = "failed" if problems or not rows else "partial" if left else "passed"
    return Outcome(status, told, problems, {"results": rows})
