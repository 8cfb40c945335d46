"""The stages that build, test and verify; and what other stages share."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import time
import zlib
from typing import Any

from tilewright.bench.process import Answer, run_pool
from tilewright.bench.session import compilers

from .run import ROOT, Outcome, Run
from .sanitize import WATCHED

#: Of the tests, those that reach the kernels or the contract; the rest needs no GPU, and `make test` runs it.
TESTS = ("tests/triton", "tests/cuda", "tests/ops", "tests/verify", "tests/tune", "tests/benchmarks")

#: A case compiles its own kernels: seconds each, on a processor of its own.
SECONDS_A_CASE = 60.0


def build(run: Run, seconds: float) -> Outcome:
    """Into this Python as it is, from the checkout; where it may not be changed, into a folder beside the results.

    The CUDA kernels are compiled for the GPU that is here, and for the emulator, which is compared with it.
    """
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-build-isolation", "--no-deps")
    editable = run.command("build.log", seconds, *pip, "-e", str(ROOT))
    how = "editable"
    if editable != 0:
        site = ROOT / "build" / "gpu-site"
        shutil.rmtree(site, ignore_errors=True)
        code = run.command("build.log", seconds, *pip, "--target", str(site), str(ROOT))
        if code != 0:
            return Outcome("failed", f"{_ended(code)}: {run.tail('build.log')}")
        how = f"into {site}, since an editable install ended with {_ended(editable)}"
        run.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), run.env.get("PYTHONPATH", "")]))
    check = (
        "import sys, tilewright as tw; found = tw.backends();"
        "print(tw.__file__, 'works: ' + ', '.join(b for b in found if found[b] is None), sep='; ');"
        f"sys.exit('; '.join(b + ' cannot be used: ' + found[b] for b in {run.backends!r} if found[b]) or 0)"
    )
    code = run.command("build.log", 60, "-c", check)
    if code != 0:
        return Outcome("failed", f"installed, but {run.tail('build.log')}")
    return Outcome("passed", f"{how}; {run.tail('build.log')}")


def _ended(code: int | None) -> str:
    return "the time limit" if code is None else f"exit code {code}"


def run_tests(run: Run, seconds: float, files: tuple[str, ...] = TESTS) -> Outcome:
    found = [f for f in files if (ROOT / f).exists()]
    parallel = ("-n", str(compilers())) if importlib.util.find_spec("xdist") else ()
    words = ("-m", "pytest", "-v", "-p", "no:cacheprovider", *parallel, "--durations=10", *found)
    env = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    code = run.command("test.log", seconds, *words, env=env)
    text = (run.out / "test.log").read_text(errors="replace")
    # A line per test, so that a run that was stopped says what it had found.
    failed = list(dict.fromkeys(re.findall(r"(?:FAILED|ERROR) (tests/.+)", text)))
    summary = re.findall(r"^=*\s*(\d+ (?:passed|failed|error|skipped).*?)\s*=*$", text, re.MULTILINE)
    if not summary:
        summary = [f"{len(re.findall(r' PASSED', text))} passed, {len(failed)} failed until then"]
    counts = summary[-1]
    data = {"exit_code": code, "failed": failed, "summary": counts}
    if code == 0:
        return Outcome("passed", counts, data)
    return Outcome("failed", "; ".join([f"{_ended(code)}: {counts}", *(f[:120] for f in failed[:4])]), data)


def case_ids(run: Run) -> list[str]:
    """Every built-in case but float64's, in an order of which any first part is a sample of all ops and options."""
    worker = run.worker("verify.log")
    try:
        answer = worker.ask({"do": "cases"}, 120.0)
    finally:
        worker.close()
    if "cases" not in answer.result:
        raise RuntimeError(f"the cases cannot be listed: {answer.result.get('raised') or answer.reason}")
    # Those that compute-sanitizer will watch come first: it then finds their kernels compiled.
    return sorted(answer.result["cases"], key=lambda name: (name not in WATCHED, zlib.crc32(name.encode())))


def verify(run: Run, seconds: float, cases: list[str] | None = None) -> Outcome:
    """Every case on every backend, each in a worker; a case that crashes or hangs costs its worker and is a failure."""
    deadline = run.until(seconds)
    ids = case_ids(run) if cases is None else cases
    records: list[dict[str, Any]] = []

    def finished(request: dict[str, Any], answer: Answer) -> None:
        records.append(record_of(request, answer))
        show(len(records), f"{sum(r['status'] == 'failed' for r in records)} failed")

    requests = [{"do": "case", "case": i, "backend": b} for i in ids for b in run.backends]
    show = Progress("verify", len(requests))
    left = run_pool(
        lambda: run.worker("verify.log", {"OMP_NUM_THREADS": "1"}),
        compilers(),
        requests,
        SECONDS_A_CASE,
        deadline,
        finished,
    )
    return judged(records, left)


def record_of(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    problem = answer.reason or answer.result.get("raised") or answer.result.get("device", "")
    record: dict[str, Any] = answer.result.get("record", {"case": request["case"], "status": "failed", "problems": []})
    if problem:
        record = {**record, "status": "failed", "problems": [*record["problems"], f"{answer.ending}: {problem}"]}
    return record


def judged(records: list[dict[str, Any]], left: int) -> Outcome:
    counts = {s: sum(r["status"] == s for r in records) for s in ("passed", "failed", "refused")}
    text = ", ".join(f"{n} {s}" for s, n in counts.items()) + (f", {left} not reached" if left else "")
    data = {**counts, "not_reached": left, "records": [r for r in records if r["status"] != "passed"]}
    data["worst"] = worst_of(records)
    if counts["failed"] or not records:
        names = [f"{r['case']}: {'; '.join(r['problems'])[:120]}" for r in records if r["status"] == "failed"]
        return Outcome("failed", "; ".join([text, *names[:3]]), data)
    return Outcome("partial" if left else "passed", text, data)


def worst_of(records: list[dict[str, Any]]) -> dict[str, Any]:
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


class Progress:
    """A line on the terminal every few seconds: a log of a run that was cut off shows how far it had come."""

    def __init__(self, title: str, total: int, every: float = 5.0) -> None:
        self._title, self._total, self._every, self._next = title, total, every, time.monotonic() + every

    def __call__(self, done: int, text: str = "") -> None:
        if time.monotonic() >= self._next or done == self._total:
            self._next = time.monotonic() + self._every
            print(f"  {self._title} {done}/{self._total} {text}", file=sys.stderr, flush=True)
