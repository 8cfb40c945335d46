"""The stages of ``make gpu``: each is a row whatever happens, and nothing of a rehearsal looks like a measurement."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import bench, main, report, stages
from gpu.run import Outcome, Run, slug

from tilewright.bench import items
from tilewright.bench.items.rooflines import COPY, GEMM
from tilewright.bench.process import Answer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, sys.executable, time.monotonic() + 60, rehearsal=True, backends=("reference",))


def test_a_stage_that_raises_is_a_row_and_the_rest_goes_on(run: Run) -> None:
    def bad(run: Run, seconds: float) -> Outcome:
        raise ValueError("it broke")

    table: dict[str, Any] = {"one": (bad, 1.0), "two": (lambda run, seconds: Outcome("passed"), 1.0)}
    outcomes = main.run_stages(run, ["one", "two"], table)
    assert outcomes["one"].status == "failed" and "it broke" in outcomes["one"].reason
    assert "Traceback" in (run.out / "one.log").read_text()
    assert outcomes["two"].status == "passed"
    run.deadline = time.monotonic()
    assert "no time" in main.run_stages(run, ["two"], table)["two"].reason


@pytest.mark.parametrize("refused", [False, True])
def test_an_install_that_is_refused_goes_into_a_folder(
    refused: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = Run.command

    def command(self: Run, log: str, seconds: float, *words: str, **options: Any) -> int | None:
        if "pip" in words:
            seen.append("-e" if "-e" in words else words[words.index("--target") + 1])
            assert {"--no-build-isolation", "--no-deps", "--no-index"} <= set(words)
            return int(refused and "-e" in words)
        return real(self, log, seconds, *words, **options)

    monkeypatch.setattr(Run, "command", command)
    outcome = stages.build(run, 50.0)
    assert outcome.status == "passed" and "works: " in outcome.reason, outcome.reason
    assert seen == (["-e", str(ROOT / "build" / "gpu-site")] if refused else ["-e"])
    assert (run.env.get("PYTHONPATH", "").split(":")[0] == str(ROOT / "build" / "gpu-site")) is refused
    run.backends = ("cuda",)
    outcome = stages.build(run, 50.0)
    assert outcome.status == "failed" and "installed, but cuda cannot be used: " in outcome.reason


def test_time_that_a_stage_leaves_goes_to_the_others(run: Run) -> None:
    given: list[float] = []

    def quick(run: Run, seconds: float) -> Outcome:
        given.append(seconds)
        return Outcome("passed")

    run.deadline = time.monotonic() + 100.0
    main.run_stages(run, ["one", "two", "three"], {"one": (quick, 1.0), "two": (quick, 1.0), "three": (quick, 2.0)})
    assert given == pytest.approx([25.0, 100 / 3, 100.0], abs=1.0)


def test_verification_runs_in_workers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "compilers", lambda: 1)
    outcome = stages.verify(run, 50.0, ["softmax/scalar/float32", "ffn/rows_1/bfloat16", "softmax/no such/float32"])
    assert outcome.status == "failed", "a case that does not exist must not pass"
    assert (outcome.data["passed"], outcome.data["failed"], outcome.data["not_reached"]) == (2, 1, 0)
    assert outcome.data["worst"]["ffn"]["of_limit"] <= 1.0


def test_a_case_that_hangs_or_breaks_the_device_is_a_failure() -> None:
    hung = stages.record_of({"case": "a/b/c"}, Answer("hung", reason="stopped after 60 s"))
    broken = stages.record_of(
        {"case": "a/b/c"},
        Answer(
            "answered", {"record": {"case": "a/b/c", "status": "passed", "problems": []}, "device": "illegal access"}
        ),
    )
    for record, word in ((hung, "stopped"), (broken, "illegal access")):
        assert record["status"] == "failed" and word in record["problems"][0]
    assert stages.judged([hung], 0).status == "failed"
    assert stages.judged([], 3).status == "failed", "nothing was verified"
    passed = {"case": "a/b/c", "op": "a", "status": "passed", "problems": []}
    assert stages.judged([passed], 3).status == "partial"
    assert stages.judged([passed], 0).status == "passed"


def test_a_rehearsal_of_the_benchmark_is_marked_and_complete(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    committed = sorted((ROOT / "benchmarks" / "results").iterdir())
    run.backends = ("cpu" if _backends()["cpu"] is None else "reference",)
    run.deadline = time.monotonic() + 300  # of a machine that does much else
    outcomes = main.run_stages(run, ["bench"])
    gpu = main.gpu_facts(rehearsal=True)
    file = main.write(run, gpu, outcomes, "2020-01-01T00:00:00+00:00")
    main.show(run, gpu, outcomes, file)
    assert file.name == "rehearsal-not-a-measurement.json"
    found = json.loads(file.read_text())
    assert found["rehearsal"] is True and found["environment"]["packages"]["torch"] == torch.__version__
    assert found["stages"]["bench"]["status"] == "passed", found["stages"]["bench"]["reason"]
    rows = found["bench"]["rows"]
    assert {r["op"] for r in rows} == {"roofline", *items.OPS} - {"growth"}
    assert "targets" not in found, "a target was judged by tiny shapes"
    ours = [r for r in rows if r["provider"].startswith("tilewright ")]
    assert [r["item"] for r in ours] == [i.name for i in items.all_items("tiny") if i.name not in (GEMM, COPY)]
    for row in ours:
        assert row["status"] == "timed", row
        assert row["error"] <= row["limit"]
        assert 0 < row["device"]["p20"] <= row["device"]["p50"] <= row["device"]["p80"]
        assert row["wall"]["samples"] >= 3 and row["result"] > 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("REHEARSAL, no measurement")
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == committed


def test_a_fault_or_a_missing_roofline_fails_the_stage() -> None:
    def row(item: str, **more: Any) -> dict[str, Any]:
        return {"item": item, "provider": "tilewright cpu", "status": "timed", "unit": "GB/s", "result": 1.0, **more}

    rows = [row(GEMM), row(COPY), row("a")]
    assert bench.judged(rows).status == "passed"
    outcome = bench.judged([*rows, row("b", fault="102% of the roofline")])
    assert outcome.status == "failed" and "b, tilewright cpu: 102%" in outcome.reason
    assert bench.judged(rows[1:]).status == "failed"


def _backends() -> dict[str, str | None]:
    from tilewright.registry import backends

    return backends()


def test_targets_are_judged_by_what_was_timed() -> None:
    def row(item: str, provider: str, result: float, **more: Any) -> dict[str, Any]:
        return {"item": item, "provider": provider, "result": result, "status": "timed", "unit": "TFLOP/s", **more}

    item = "attention forward d128 full S4096"
    rows = [row(item, "tilewright triton", 500.0), row(item, "tilewright cuda", 400.0), row(item, "flex", 450.0)]
    rows += [
        row(f"softmax forward {w}", "tilewright cuda", 1.0, op="softmax", width=w, of_roofline=0.96) for w in (4096,)
    ]
    rows.append(row("decode latency B1 KV1024", "tilewright cuda", 6.5, unit="us"))
    found = {text: (shown, verdict) for text, shown, verdict in report.targets(rows)}
    assert found[f"{item} >= 490 TFLOP/s"] == ("500 (triton)", "met")
    assert found[f"{item} >= 1.2x FlexAttention"] == ("1.11x (triton)", "missed")
    assert found["softmax forward >= 4K columns >= 95% of copy"] == ("96%", "met")
    assert found["softmax forward >= 1.0x quack at every width"] == ("-", "unknown")
    assert found["decode latency B1 KV1024 <= 7 us"] == ("6.5 us (cuda)", "met")


def test_a_file_is_named_after_the_gpu() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_stops(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("make gpu needs a GPU: torch ") and "sees no CUDA device" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
