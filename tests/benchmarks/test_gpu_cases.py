"""The stages that run verification cases and checks in workers: what is wrong, hangs or breaks the device is a failure,
and what they name exists."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import calls, cases, checks, emulator, imports, worker
from gpu.run import Outcome, Run, process

from tilewright.bench import items
from tilewright.catalog import OPS
from tilewright.verify import planes
from tilewright.verify.cases import CASES


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Its workers run the reference, in a process that Triton's interpreter serves."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton-cache"))
    found = Run("contact", tmp_path, tmp_path, time.monotonic() + 120, rehearsal=True, backends=("reference",))
    facts = {"cases": [c.id for c in CASES], "kernels": [], "emulator": False}
    found.save("import", Outcome("passed", data=facts))
    return found


def test_what_is_named_exists() -> None:
    known = {c.id for c in CASES}
    for named in (cases.SMOKE, checks.CASES):
        assert set(named) <= known, set(named) - known
        assert {name.split("/")[0] for name in named} == set(OPS)
    assert set(checks.PLANES) == {c.name for c in planes.calls(16)}
    assert set(checks.RERUN) <= {i.name for i in items.all_items("gpu")}
    assert set(checks.RERUN_TINY) <= {i.name for i in items.all_items("tiny")}


def test_cases_run_in_workers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "workers", lambda run: 1)
    named = ["softmax/scalar/float32", "ffn/rows_1/bfloat16", "softmax/no such/float32"]
    outcome = cases.verify(run, "cuda", named, ["reference"])
    assert outcome.status == "failed", "a case that does not exist must not pass"
    assert (outcome.data["passed"], outcome.data["failed"], outcome.data["not_reached"]) == (2, 1, 0)
    assert outcome.data["worst"]["ffn"]["of_limit"] <= 1.0
    (problem,) = outcome.problems
    missing = "LookupError: there is no verification case 'softmax/no such/float32'"
    assert problem == f"softmax/no such/float32 on reference: {missing}"


def test_any_first_part_of_the_cases_has_every_op() -> None:
    first = cases.shuffled([c.id for c in CASES])[:60]
    assert {name.split("/")[0] for name in first} == set(OPS)


def test_a_case_that_hangs_or_breaks_the_device_is_a_failure() -> None:
    request = {"case": "a/b/c", "backend": "cuda"}
    passed = {"case": "a/b/c", "op": "a", "backend": "cuda", "status": "passed", "problems": []}
    hung = cases.record_of(request, process.Answer("hung", reason="stopped after 60 s"))
    broken = cases.record_of(request, process.Answer("answered", {"record": passed, "device": "illegal access"}))
    for record, word in ((hung, "stopped"), (broken, "illegal access")):
        assert record["status"] == "failed" and word in record["problems"][0]
    assert cases.judged([hung], 0).status == "failed"
    assert cases.judged([], 3).status == "failed", "nothing was verified"
    assert cases.judged([passed], 3).status == "partial"
    assert cases.judged([passed], 0).status == "passed"


def test_without_the_package_the_stages_say_where_to_look(run: Run) -> None:
    (run.work / "import.json").unlink()
    with pytest.raises(RuntimeError, match="see the stage import"):
        imports.facts(run)


class _Streams:
    """A device on which the function captured last is never replayed, and another stream is ahead of its inputs."""

    name = "cpu"

    def synchronize(self) -> None:
        pass

    def capture(self, function: Any) -> Any:
        return (lambda: None), function()


def checked(check: str, subject: str, backend: str = "cpu") -> tuple[bool, str]:
    found = calls.check({"check": check, "subject": subject, "backend": backend, "times": 3})
    return found["right"], found["words"]


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_GPU_REHEARSAL", "1")


@pytest.mark.usefixtures("rehearsed")
def test_checks_of_right_kernels_pass() -> None:
    case = "softmax/width_100/bfloat16"
    for check in ("stream", "graph", "cold graph"):
        assert checked(check, case)[0], check
    assert checked("fused by TMA", "64") == (True, checked("fused by TMA", "64")[1])
    assert checked("planes", "softmax across")[0]
    assert checked("reruns", checks.RERUN_TINY[1]) == (True, "0 of 3 results differ from the first")


@pytest.mark.usefixtures("rehearsed")
def test_a_stale_replay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "device", _Streams)
    assert checked("graph", "softmax/width_100/bfloat16") == (False, "y, dx differ")


@pytest.mark.usefixtures("rehearsed")
def test_a_kernel_on_another_stream_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "overwrite", lambda blocks, values: None)  # the inputs would come too late for it
    right, words = checked("stream", "softmax/width_100/bfloat16")
    assert not right and "differ" in words


@pytest.mark.usefixtures("rehearsed")
def test_a_capture_that_is_refused_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []
    real = calls.device

    def device() -> Any:
        at = real()
        capture = at.capture

        def first_refused(function: Any) -> Any:
            if not refused:
                refused.append(1)
                raise RuntimeError("operation not permitted when stream is capturing")
            return capture(function)

        at.capture = first_refused  # type: ignore[method-assign]
        return at

    monkeypatch.setattr(calls, "device", device)
    right, words = checked("cold graph", "softmax/width_100/bfloat16")
    assert right and words.startswith("cannot be captured before a first call: RuntimeError: operation not permitted")
    assert "after one: a replay" in words


@pytest.mark.usefixtures("rehearsed")
def test_wrong_results_and_copies_by_pointers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls.exact, "distance", lambda found, expected: float("nan"))
    assert not checked("planes", "softmax")[0]
    # The interpreter's kernels are launched here, which read nothing by TMA when they are told not to.
    from tilewright.backends import triton_attention_call

    monkeypatch.undo()
    monkeypatch.setattr(triton_attention_call, "describable", lambda t: False)
    monkeypatch.setenv("TILEWRIGHT_GPU_REHEARSAL", "1")
    monkeypatch.setattr(calls, "FUSED_SEQLEN", 128)
    right, words = checked("fused by TMA", "64", "triton")
    assert not right and "nothing was read by TMA" in words


@pytest.mark.usefixtures("rehearsed")
def test_a_result_that_changes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def build(bench: Any) -> Any:
        def call() -> torch.Tensor:
            called.append(0)
            return torch.tensor(float(len(called) == 3))

        return type("Built", (), {"providers": {"tilewright cpu": lambda: call}})()

    item = type("Item", (), {"name": "one", "build": staticmethod(build)})()
    monkeypatch.setattr(items, "all_items", lambda shapes, calls: [item])
    assert checked("reruns", "one") == (False, "1 of 3 results differ from the first")


def test_what_checks_find_is_told_failures_first() -> None:
    def record(words: str, right: bool) -> dict[str, Any]:
        request = {"check": "graph", "subject": "a", "backend": "cuda"}
        return checks.record_of(request, process.Answer("answered", {"right": right, "words": words}))

    outcome = checks.judged([record("cannot be captured", True), record("fine", True), record("x differs", False)], 0)
    assert outcome.status == "failed" and outcome.reason == "graph 2/3"
    assert outcome.problems == ["graph, a on cuda: FAILED: x differs", "graph, a on cuda: cannot be captured"]
    assert checks.judged([record("fine", True)], 2).status == "partial"
    assert checks.judged([], 2).status == "failed"
    crashed = checks.record_of(
        {"check": "a", "subject": "b", "backend": "c"}, process.Answer("crashed", reason="SIGSEGV")
    )
    assert crashed["words"] == "FAILED: crashed: SIGSEGV"


def test_results_that_are_apart_are_a_failure(tmp_path: Path) -> None:
    one = {"out": torch.tensor([1.0, torch.inf, 3.0]), "dx": torch.ones(3, dtype=torch.bfloat16)}
    others = {
        "passed": {**one, "out": one["out"] + 1e-7},
        "out is": {**one, "out": torch.tensor([1.0, torch.inf, 3.001])},
        "out is 0": {**one, "out": torch.tensor([1.0, -torch.inf, 3.0])},
        "different outputs": {"out": one["out"]},
    }
    torch.save(one, tmp_path / "a.pt")
    for expected, other in others.items():
        torch.save(other, tmp_path / "b.pt")
        request = {"files": [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]}
        found = worker.HANDLERS["distance"](request, lambda message: None)
        assert found["status"] == "passed" if expected == "passed" else expected in found["reason"], found


def test_the_emulator_beside_the_gpu_can_fail(run: Run) -> None:
    """Here both are the same answers; one that is missing, or apart, is a failure with its case."""

    class Asked:
        def __init__(self, answers: list[dict[str, Any]]) -> None:
            self.answers = answers

        def ask(self, request: dict[str, Any], seconds: float) -> Any:
            return process.Answer("answered", self.answers.pop(0))

    def compared(emulated: dict[str, Any], here: list[dict[str, Any]]) -> dict[str, Any]:
        return emulator.compare(run, "a/b/c", Asked(here), Asked([emulated]), 0)

    written, near = {"written": ["out"]}, {"status": "passed", "reason": "", "distance": {"out": 0.0}}
    assert compared(written, [written, near])["status"] == "passed"
    assert compared({"raised": "a race"}, []) == {"status": "failed", "reason": "on the emulator: a race"}
    assert compared(written, [{"raised": "too large"}]) == {"status": "failed", "reason": "on the GPU: too large"}
    apart = compared(written, [written, {**near, "status": "failed", "reason": "out is 1 apart"}])
    outcome = emulator.judged([{"case": "a/b/c", **apart}], 1)
    assert outcome.status == "failed" and outcome.problems == ["a/b/c: out is 1 apart"]
    assert emulator.judged([{"case": "a/b/c", **near}], 2).reason == "1 of 2 cases within rounding, 1 not reached"
    assert emulator.emulator(run).status == "not run", "this build, as the fixture has it, has no emulator"


def test_the_parts_of_a_call_are_json(run: Run) -> None:
    assert Run.from_json(run.to_json()) == run
    json.loads(run.to_json())
