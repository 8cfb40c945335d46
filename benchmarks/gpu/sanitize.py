"""compute-sanitizer over a few cases, on our kernels alone: accesses out of bounds or misaligned, and races in shared
memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .imports import facts
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
#: What a tool prints last, with the number of what it has found.
SUMMARY = {
    "memcheck": r"ERROR SUMMARY: (\d+) errors?",
    "racecheck": r"RACECHECK SUMMARY: (\d+) hazards?",
}
#: Barriers of Triton kernels are placed by Triton; those of the CUDA kernels are ours.
BACKENDS = {"memcheck": ("cuda", "triton"), "racecheck": ("cuda",)}

#: In the mangled name of every CUDA kernel of ours: their namespace.
NAMESPACE = "tilewright"


def memcheck(run: Run) -> Outcome:
    return sanitize(run, "memcheck")


def racecheck(run: Run) -> Outcome:
    return sanitize(run, "racecheck")


def sanitize(run: Run, tool: str) -> Outcome:
    program = sanitizer()
    if program is None:
        return Outcome("not run", "compute-sanitizer was not found (looked on PATH and in /usr/local/cuda*/bin)")
    backends = [b for b in BACKENDS[tool] if b in run.backends]
    with ThreadPoolExecutor(len(backends)) as pool:
        found = list(pool.map(lambda b: _watch(run, program, tool, b), backends))
    statuses = {outcome.status for outcome in found}
    status = "failed" if "failed" in statuses else "partial" if "partial" in statuses else "passed"
    told = "; ".join(f"{b}: {outcome.reason}" for b, outcome in zip(backends, found, strict=True))
    problems = [f"{b}: {p}" for b, outcome in zip(backends, found, strict=True) for p in outcome.problems]
    return Outcome(status, told, problems, {b: o.data for b, o in zip(backends, found, strict=True)})


def _watch(run: Run, program: str, tool: str, backend: str) -> Outcome:
    """Each tensor is an allocation of its own, so that its end is seen. Torch's kernels are not watched."""
    cases, log = run.some(WATCHED), f"{tool}-{backend}.log"
    (run.work / log).unlink(missing_ok=True)
    code = run.program(
        log,
        *(program, "--tool", tool, "--error-exitcode", "99", "--print-limit", "20", "--launch-timeout", "120"),
        *filters(program, backend, facts(run)["kernels"]),
        *(run.python, str(Path(__file__).parent), "--cases", backend, *cases),
        env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"},
    )
    return watched(tool, (run.work / log).read_text(errors="replace"), code, run.tail(log), len(cases))


def filters(program: str, backend: str, kernels: list[str]) -> list[str]:
    """By name; older releases call the option otherwise."""
    said = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    option = "--kernel-name" if "--kernel-name" in said else "--kernel-regex"
    wanted = f"kns={NAMESPACE}" if backend == "cuda" else f"regex=^({'|'.join(kernels)})$"
    return [option, wanted]


def sanitizer() -> str | None:
    installed = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or (str(installed[-1]) if installed else None)


def watched(tool: str, text: str, code: int | None, tail: str, cases: int = len(WATCHED)) -> Outcome:
    """What the tool's log says."""
    errors = re.findall(SUMMARY[tool], text)
    passed, failed = (len(re.findall(rf"^case \S+ {word}", text, re.MULTILINE)) for word in ("passed", "failed"))
    counts = f"{passed} of {cases} cases passed"
    data = {"exit_code": code, "errors": [int(n) for n in errors], "passed": passed, "failed": failed}
    if code is None:
        return Outcome("partial" if passed and not failed else "failed", f"stopped at its limit: {counts}", [], data)
    if not errors:
        return Outcome("failed", "no summary", [f"{tool} printed no summary: {tail}"], data)
    if code != 0 or int(errors[-1]) or failed or passed != cases:
        return Outcome("failed", f"{errors[-1]} errors, exit code {code}, {counts}", findings(text), data)
    return Outcome("passed", f"0 errors, {counts}", [], data)


def findings(text: str) -> list[str]:
    """What was found, each with the source line that it is at, and cases that did not pass."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        if re.match(r"========= .*(Invalid |out of bounds|hazard detected|Race reported|Barrier error|Error: )", line):
            at = next((n for n in lines[number + 1 : number + 4] if re.match(r"=========\s+at ", n)), "")
            found.append(" ".join(f"{line.strip('= ')} {at.strip('= ')}".split()))
    return list(dict.fromkeys(found)) + [line for line in lines if re.match(r"case \S+ (failed|refused)", line)]
