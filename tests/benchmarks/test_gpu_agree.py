"""The emulator beside other kernels on the same inputs, and reruns: both must be able to fail."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import agree, worker
from gpu.run import Run

from tilewright.bench import items
from tilewright.registry import unavailable


@pytest.fixture
def run(tmp_path: Path) -> Run:
    backend = "cpu" if unavailable("cpu") is None else "reference"
    return Run(tmp_path, sys.executable, time.monotonic() + 120, rehearsal=True, backends=(backend,))


def test_what_it_names_exists() -> None:
    from tilewright.catalog import OPS
    from tilewright.verify.cases import CASES

    assert set(agree.COMPARED) <= {c.id for c in CASES}
    assert {name.split("/")[0] for name in agree.COMPARED} == set(OPS)
    assert set(agree.RERUN) <= {i.name for i in items.all_items("gpu")}
    assert set(agree.RERUN_TINY) <= {i.name for i in items.all_items("tiny")}


def test_a_rehearsal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated CUDA kernels beside those of the CPU: other sources, other orders of summation, the same inputs."""
    pytest.importorskip("tilewright._cuda_emulated", reason="this build has no emulator", exc_type=ImportError)
    monkeypatch.setattr(agree, "COMPARED", (*agree.COMPARED[:1], "softmax/width_100/bfloat16", "ffn/no such/float32"))
    outcome = agree.agree(run, 100.0)
    first, second, missing, *reruns = outcome.data["rows"]
    assert (first["status"], second["status"]) == ("passed", "passed"), outcome.reason
    assert set(first["distance"]) == {"out", "dq", "dk", "dv"}
    assert first["distance"]["out"] > 0 and 0.5 < first["equal"]["out"] < 1.0, "two implementations are never so equal"
    assert missing["status"] == "failed" and outcome.status == "failed"
    assert [r["status"] for r in reruns] == ["passed"] * 2 and [r["times"] for r in reruns] == [10, 10]
    assert not list(run.out.glob("*.pt"))


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


def test_a_result_that_changes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def build(bench: Any) -> Any:
        def call() -> torch.Tensor:
            calls.append(0)
            return torch.tensor(float(len(calls) == 3))

        return type("Built", (), {"providers": {"tilewright cpu": lambda: call}})()

    item = type("Item", (), {"name": "one", "build": staticmethod(build)})()
    monkeypatch.setattr(items, "all_items", lambda shapes, calls: [item])
    request = {"item": "one", "provider": "tilewright cpu", "times": 5, "bench": {"device": "cpu"}}
    assert worker.HANDLERS["reruns"](request, lambda message: None) == {"different": 1}
