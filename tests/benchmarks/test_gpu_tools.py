"""What is made of the words of compute-sanitizer, Nsight Compute and the benchmark."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from gpu import bench, candidates, counters, report, sanitize
from gpu.run import Outcome, Run
from gpu.targets import TARGETS, targets

from tilewright.bench import items
from tilewright.bench.items.rooflines import COPY, GEMM, READ
from tilewright.triton_kernels import launch

LINES = "\n".join(f"case {name} passed " for name in sanitize.WATCHED)
CLEAN = {
    "memcheck": "========= ERROR SUMMARY: 0 errors",
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}
FOUND = {
    "memcheck": "========= Invalid __global__ read of size 2 bytes\n"
    "=========     at void tilewright::gpu::kernel(int)+0x40 in softmax.cu:12\n========= ERROR SUMMARY: 3 errors",
    "racecheck": "========= Error: Race reported between Read access at kernel+0x1 in a.cu:3 and Write access\n"
    "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run("contact", tmp_path, tmp_path, time.monotonic() + 60)
    found.save("import", Outcome("passed", data={"cases": [], "kernels": ["attention_forward", "merge"]}))
    return found


@pytest.mark.parametrize("tool", CLEAN)
@pytest.mark.parametrize(
    ("text", "code", "status"),
    [
        (f"{LINES}\nclean", 0, "passed"),
        (f"{LINES}\nfound", 99, "failed"),
        (f"{LINES}\nfound", 0, "failed"),
        ("case a/b/c passed\nclean", 0, "failed"),
        (f"{LINES}\ncase a/b/c failed \nclean", 1, "failed"),
        (LINES, 0, "failed"),
        ("Error: Device not supported", 1, "failed"),
        ("case a/b/c passed \n", None, "partial"),
        ("", None, "failed"),
    ],
    ids=["clean", "found", "code 0", "cases missing", "case failed", "no summary", "refused", "stopped", "nothing"],
)
def test_what_the_sanitizer_says(tool: str, text: str, code: int | None, status: str) -> None:
    text = text.replace("clean", CLEAN[tool]).replace("found", FOUND[tool])
    assert sanitize.watched(tool, text, code, "the last line").status == status


def test_what_the_sanitizer_finds_is_told_with_its_line() -> None:
    assert sanitize.findings(FOUND["memcheck"]) == [
        "Invalid __global__ read of size 2 bytes at void tilewright::gpu::kernel(int)+0x40 in softmax.cu:12"
    ]
    assert "in a.cu:3" in sanitize.findings(FOUND["racecheck"])[0]
    assert sanitize.findings("case a/b/c failed: it raised\n") == ["case a/b/c failed: it raised"]


def test_the_watched_cases_exist() -> None:
    from tilewright.catalog import OPS
    from tilewright.verify.cases import CASES

    assert set(sanitize.WATCHED) <= {c.id for c in CASES}
    assert {name.split("/")[0] for name in sanitize.WATCHED} == set(OPS)


def test_each_backend_is_watched_on_its_own_kernels(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[tuple[str, str], str] = {}
    bad = ("triton", "memcheck")

    def program(self: Run, log: str, *words: str, **options: Any) -> int:
        tool, backend = words[words.index("--tool") + 1], words[words.index("--cases") + 1]
        seen[backend, tool] = words[words.index("--kernel-name") + 1]
        assert options["env"]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        (self.work / log).write_text(f"{LINES}\n{FOUND[tool] if (backend, tool) == bad else CLEAN[tool]}")
        return 99 if (backend, tool) == bad else 0

    monkeypatch.setattr(Run, "program", program)
    stand_in = str(Path(sanitize.__file__).parent / "stand_ins" / "compute-sanitizer")
    monkeypatch.setattr(sanitize, "sanitizer", lambda: stand_in)
    found = {tool: sanitize.sanitize(run, tool) for tool in CLEAN}
    ours = "regex=^(attention_forward|merge)$"
    assert seen == {
        ("cuda", "memcheck"): "kns=tilewright", ("triton", "memcheck"): ours, ("cuda", "racecheck"): "kns=tilewright",
    }  # fmt: skip
    assert found["racecheck"].status == "passed" and found["memcheck"].status == "failed"
    assert found["memcheck"].problems[0].startswith("triton: Invalid __global__ read")
    older = tmp_path / "compute-sanitizer"
    older.write_text("#!/bin/sh\necho '  --kernel-regex arg'\n")
    older.chmod(0o755)
    assert sanitize.filters(str(older), "cuda", [])[0] == "--kernel-regex"


def test_without_the_tools_the_result_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize, "sanitizer", lambda: None)
    monkeypatch.setattr(counters, "profiler", lambda: None)
    for outcome, name in ((sanitize.memcheck(run), "compute-sanitizer"), (counters.counters(run), "ncu")):
        assert outcome.status == "not run" and f"{name} was not found" in outcome.reason


#: As `ncu --csv --page details` prints it, shortened.
REPORT = """==PROF== Connected to process 42 (/usr/bin/python3.12)
==PROF== Profiling "attention_forward": 0%....50%....100% - 12 passes
"ID","Process ID","Kernel Name","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"
"0","42","attention_forward","0","9.0","GPU Speed Of Light Throughput","Duration","us","1,234.50"
"0","42","attention_forward","0","9.0","GPU Speed Of Light Throughput","Compute (SM) Throughput","%","61.20"
"0","42","attention_forward","0","9.0","GPU Speed Of Light Throughput","Memory Throughput","%","30.1"
"0","42","attention_forward","0","9.0","Launch Statistics","Registers Per Thread","register/thread","240"
"0","42","attention_forward","0","9.0","Memory Workload Analysis","Memory Throughput","Gbyte/s","910"
"1","42","void tilewright::gpu::forward<2, 3>(Params)","0","9.0","GPU Speed Of Light Throughput","Duration","us","9"
"1","42","void tilewright::gpu::forward<2, 3>(Params)","0","9.0","GPU Speed Of Light Throughput","","",""
"""


def test_what_the_profiler_reports() -> None:
    first, second = counters.parsed(REPORT)
    assert first["kernel"] == "attention_forward" and first["metrics"]["Duration"] == "1,234.50 us"
    assert first["metrics"]["Registers Per Thread"] == "240 register/thread"
    assert first["metrics"]["Memory Throughput"] == "30.1 %", "the first of two of this name"
    assert first["metrics"]["Memory Throughput (Memory Workload Analysis)"] == "910 Gbyte/s"
    shown = counters.table([first, second]).splitlines()
    assert shown[0].split()[:2] == ["kernel", "us"] and "1,234.50 us" in shown[1] and "61.20" in shown[1]
    assert "tilewright::gpu::forward" in shown[2]
    assert counters.parsed("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission") == []


@pytest.mark.parametrize(
    ("printed", "code", "status"), [(REPORT, 0, "passed"), (REPORT, 1, "failed"), ("no", 1, "failed")]
)
def test_the_profilers_run(
    printed: str, code: int, status: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(self: Run, log: str, *words: str, **options: Any) -> int:
        assert words[words.index("--clock-control") + 1] == "none"
        Path(words[words.index("--log-file") + 1]).write_text(printed)
        return code

    monkeypatch.setattr(Run, "program", program)
    monkeypatch.setattr(counters, "profiler", lambda: shutil.which("true"))
    outcome = counters.counters(run)
    assert outcome.status == status
    assert bool(outcome.data) is (printed == REPORT)


def test_the_profiled_and_rehearsed_calls_exist() -> None:
    for words, shapes in ((counters.CALLS, "gpu-first"), (counters.TINY, "tiny")):
        assert {w.rpartition("=")[0] for w in words} <= {i.name for i in items.all_items(shapes)}
        assert {w.rpartition("=")[2] for w in words} == {"triton", "cuda"}


def test_candidates_are_of_the_tables_and_differ_from_what_is_in_force() -> None:
    assert len(candidates.CANDIDATES) == len({(c.kernel, c.key, str(c)) for c in candidates.CANDIDATES})
    for candidate in (*candidates.CANDIDATES, *candidates.TINY):
        assert candidate.key in launch.known_keys("sm_90", candidate.kernel), candidate
        force = launch.table_config("sm_90", candidate.kernel, candidate.key)
        assert set(candidate.blocks) == set(force.blocks), candidate
        tried = (candidate.blocks, candidate.warps, candidate.stages)
        assert tried != tuple(force), f"{candidate.kernel} {candidate.key} {candidate} is in force"


def test_candidates_are_told_by_what_came_of_them() -> None:
    def row(config: str, outcome: str, seconds: float | None = None) -> dict[str, Any]:
        times = {"seconds": seconds, "current_seconds": 2e-3} if seconds else {}
        return {"kernel": "k", "key": "2,128", "config": config, "outcome": outcome, "reason": "why", **times}

    rows = [row("a", "not faster", 3e-3), row("b", "faster", 1e-3), row("c", "refused")]
    outcome = candidates.judged(rows, 0)
    assert outcome.status == "passed" and outcome.reason == "1 not faster, 1 faster, 1 refused"
    (table,) = outcome.data["tables"]
    assert "2.00x" in table and "1000 us, in force 2000" in table and " a " not in table
    assert candidates.judged(rows[:1], 0).data["tables"][0].count("\n") == 1, "the fastest, where none is faster"
    assert candidates.judged([row("d", "different")], 0).problems == ["k 2,128 d: why"]
    assert candidates.judged(rows, 2).status == "partial"


def measured(item: str, provider: str = "tilewright cuda", **more: Any) -> dict[str, Any]:
    return {"item": item, "provider": provider, "status": "timed", "unit": "GB/s", "result": 1.0, **more}


def test_a_fault_or_a_wrong_result_fails_the_measurement(run: Run) -> None:
    roofs = [measured(COPY, "torch", result=2.0), measured(READ, "sum", result=3.0), measured(GEMM, "torch")]
    assert bench.judged(run, [*roofs, measured("a")]).status == "passed"
    assert bench.judged(run, [*roofs, measured("a", "eager", status="raised", reason="x")]).status == "passed"
    too_fast = bench.judged(run, [*roofs, measured("a", result=3.1)])
    assert too_fast.status == "failed" and "a, tilewright cuda: 103% of the roofline" in too_fast.problems[0]
    wrong = bench.judged(run, [*roofs, measured("a", status="wrong", reason="its error")])
    assert wrong.problems == ["a, tilewright cuda: wrong: its error"]
    assert bench.judged(run, [*roofs, measured("a", "all", status="not reached")]).status == "partial"
    assert bench.judged(run, []).status == "failed"


def test_a_later_stage_is_held_against_the_rooflines_of_the_first(run: Run) -> None:
    run.save("calls", Outcome("passed", data={"rows": [measured(COPY, "torch", result=2.0)]}))
    (row,) = bench.judged(run, [measured("a")]).data["rows"]
    assert row["of_roofline"] == 0.5


def test_a_rehearsals_rows_hold_no_figure(run: Run) -> None:
    run.rehearsal = True
    timed = measured(
        "a", device={"p50": 1.0}, wall={"p50": 1.0}, peak_bytes=1, roofline=3.0, of_roofline=0.3, error=0.1
    )
    (row,) = bench.judged(run, [timed]).data["rows"]
    assert row == {"item": "a", "provider": "tilewright cuda", "unit": "GB/s", "status": "rehearsed", "error": 0.1}
    assert report.measured_table([row]).splitlines()[1].split() == ["a", "GB/s", "rehearsed"]
    tried = {"kernel": "k", "key": "", "config": "c", "outcome": "faster", "seconds": 1.0, "current_seconds": 2.0}
    assert candidates.without_figures(tried) == {"kernel": "k", "key": "", "config": "c", "outcome": "rehearsed"}
    assert candidates.judged([candidates.without_figures(tried)], 0).data["tables"] == [""]


def test_targets_are_judged_by_what_was_timed() -> None:
    item = "attention forward d128 full S4096"
    rows = [
        measured(item, "tilewright triton", unit="TFLOP/s", result=500.0),
        measured(item, "tilewright cuda", unit="TFLOP/s", result=400.0),
        measured(item, "flex", unit="TFLOP/s", result=450.0),
        measured(COPY, "torch", result=3000.0),
        measured("softmax forward 16384", result=2880.0),
        measured("softmax forward 1024", status="wrong"),
        measured("decode latency B1 KV1024", unit="us", result=6.5),
        measured("decode latency B1 KV1024", "tilewright triton", unit="us", result=7.5),
    ]
    assert targets(rows) == [
        (f"{item} >= 490 TFLOP/s", "500 (triton)", "met"),
        (f"{item} >= 1.2 x flex", "1.11 (triton)", "missed"),
        ("softmax forward 16384 >= 0.95 x copy", "0.96 (cuda)", "met"),
        ("decode latency B1 KV1024 <= 7 us", "6.5 (cuda)", "met"),
    ]
    assert not targets(bench.without_figures(rows))


def test_targets_are_of_the_calls_that_are_measured() -> None:
    assert {item for item, _, _ in TARGETS} <= {i.name for i in items.all_items("gpu")}


def test_a_measured_call_is_a_line() -> None:
    rows = [
        measured("a", of_roofline=0.5, result=1234.0),
        measured("a", "eager", result=0.5, fault="too fast"),
        measured("a", "quack", status="missing", reason=""),
        measured("b", "all", status="not reached"),
    ]
    table = report.measured_table(rows).splitlines()
    assert table[0].split() == ["tilewright", "cuda", "eager"] and table[1].split() == [
        "a",
        "GB/s",
        "1234",
        "50%",
        "0.5!",
    ]
    assert table[2] == "1 calls have no row: see their reasons in the result file"


def test_figures_come_from_the_stage_that_had_most_beside_them() -> None:
    def row(item: str, provider: str, status: str = "timed") -> dict[str, str]:
        return {"item": item, "provider": provider, "status": status}

    first = Outcome("passed", data={"rows": [row("a", "tilewright cuda"), row("b", "tilewright cuda")]})
    second = [row("a", "tilewright cuda"), row("a", "flex"), row("b", "all", "not reached")]
    found = report.rows({"calls": first, "compiled": Outcome("partial", data={"rows": second})})
    assert [(r["item"], r["provider"]) for r in found] == [
        ("a", "tilewright cuda"), ("a", "flex"), ("b", "tilewright cuda"),
    ]  # fmt: skip
