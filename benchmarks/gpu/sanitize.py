"""compute-sanitizer over a few cases: accesses out of bounds or misaligned, and races in shared memory."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .run import Outcome, Run

#: An option of each kind that computes addresses, on sizes that fill no tile.
WATCHED = (
    "attention/everything/bfloat16",
    "attention/causal_top_left_70x130/float32",
    "attention/head_dim_50_3/float16",
    "varlen_attention/everything/float16",
    "kvcache_attention/paged_splits_2/bfloat16",
    "kvcache_attention/contiguous_window_both/float16",
    "softmax/width_100/bfloat16",
    "log_softmax/width_100/float32",
    "ffn/rows_1/float16",
    "ffn/swiglu_everything/bfloat16",
)

#: What the tool prints last, with the number of what it has found.
SUMMARY = {
    "memcheck": r"ERROR SUMMARY: (\d+) errors?",
    "racecheck": r"RACECHECK SUMMARY: (\d+) hazards?",
    "synccheck": r"ERROR SUMMARY: (\d+) errors?",
}
#: Triton places its own barriers; those of the CUDA kernels are ours.
TOOLS = {"triton": ("memcheck",), "cuda": ("memcheck", "racecheck", "synccheck")}


def sanitize(run: Run, seconds: float) -> Outcome:
    """All tools side by side: they keep one processor each busy, and the GPU hardly at all."""
    tool = sanitizer()
    if tool is None:
        return Outcome("not run", "compute-sanitizer was not found (looked on PATH and in /usr/local/cuda*/bin)")
    program = tool
    pairs = [(backend, name) for backend in run.backends for name in TOOLS.get(backend, ("memcheck",))]
    with ThreadPoolExecutor(len(pairs)) as pool:
        found = list(pool.map(lambda pair: _watch(run, seconds, program, *pair), pairs))
    data = {f"{backend} {name}": outcome.data for (backend, name), outcome in zip(pairs, found, strict=True)}
    statuses = {outcome.status for outcome in found}
    status = "failed" if "failed" in statuses else "partial" if "partial" in statuses else "passed"
    worst_first = sorted(zip(pairs, found, strict=True), key=lambda one: one[1].status != "failed")
    reasons = [f"{backend} {name}: {outcome.reason}" for (backend, name), outcome in worst_first]
    return Outcome(status, "; ".join(reasons), data)


def _watch(run: Run, seconds: float, program: str, backend: str, name: str) -> Outcome:
    """Each tensor is an allocation of its own, so that its end is seen."""
    log = f"sanitize-{backend}-{name}.log"
    (run.out / log).unlink(missing_ok=True)
    code = run.program(
        log,
        seconds,
        *(program, "--tool", name, "--error-exitcode", "99", "--print-limit", "20"),
        *(run.python, str(Path(__file__).parent), "--cases", backend, *WATCHED),
        env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"},
    )
    return watched(name, (run.out / log).read_text(errors="replace"), code, run.tail(log))


def sanitizer() -> str | None:
    installed = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or (str(installed[-1]) if installed else None)


def watched(tool: str, text: str, code: int | None, tail: str) -> Outcome:
    """What the tool's log says."""
    errors = re.findall(SUMMARY[tool], text)
    passed, failed = (len(re.findall(rf"^case \S+ {word}", text, re.MULTILINE)) for word in ("passed", "failed"))
    counts = f"{passed} of {len(WATCHED)} cases passed"
    data = {"exit_code": code, "errors": [int(n) for n in errors], "passed": passed, "failed": failed}
    if code is None:
        return Outcome("partial" if passed and not failed else "failed", f"stopped at its limit: {counts}", data)
    if not errors:
        return Outcome("failed", f"compute-sanitizer printed no summary: {tail}", data)
    if code != 0 or int(errors[-1]) or failed or passed != len(WATCHED):
        found = re.findall(r"========= (Invalid .*|.*out of bounds.*|.*hazard detected.*|Barrier error.*)", text)
        return Outcome("failed", "; ".join([f"{errors[-1]} errors, exit code {code}, {counts}", *found[:2]]), data)
    return Outcome("passed", f"0 errors, {counts}", data)
