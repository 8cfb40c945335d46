"""``tilewright demo``, each of its steps made short."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tilewright.demo import FAILED, NOT_RUN, PASSED, Outcome, compare, measure, verify

from .conftest import Run


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright import train
    from tilewright.bench import workloads

    monkeypatch.setattr(verify, "EVERY", 400)
    monkeypatch.setattr(measure, "SECONDS_EACH", 0.0)
    small = [w for w in workloads.workloads() if w.case.op == "softmax"]
    monkeypatch.setattr(workloads, "workloads", lambda: iter(small))
    real = train.pretrain

    def brief(model: Any, data: Any, **options: Any) -> Any:
        return real(model, data, **{**options, "steps": 3, "eval_every": 3, "eval_batches": 1, "seq_len": 32})

    monkeypatch.setattr(train, "pretrain", brief)


@pytest.mark.usefixtures("short")
def test_all_steps(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--output", str(tmp_path), "--seconds-to-train", "60")
    found = json.loads((tmp_path / "demo.json").read_text())
    complete = all(importlib.util.find_spec(name) for name in ("transformers", "matplotlib"))
    assert result.code == (0 if complete else 3), result.out
    assert found["verify"]["failed"] == 0
    assert found["train"]["steps"] == 3
    assert {r["mode"] for r in found["measure"]["rows"]} == {"forward", "forward+backward"}
    assert found["environment"]["cpu"]
    if complete:
        assert found["compare"]["status"] == PASSED
        assert (tmp_path / "speedup.png").stat().st_size > 10_000
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "Next:" in result.out


def _fixed(monkeypatch: pytest.MonkeyPatch, **statuses: str) -> None:
    for name in ("verify", "train", "compare", "measure"):
        outcome = Outcome(statuses.get(name, PASSED), f"{name} said so")
        monkeypatch.setattr(f"tilewright.demo.{name}.{name}_step", lambda *_, outcome=outcome: outcome)


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ({}, 0),
        ({"verify": FAILED}, 1),
        ({"compare": FAILED}, 1),
        ({"compare": NOT_RUN}, 3),
        ({"compare": NOT_RUN, "verify": FAILED}, 1),
    ],
)
def test_exit_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, statuses: dict[str, str], code: int
) -> None:
    _fixed(monkeypatch, **statuses)
    result = run("demo", "--output", str(tmp_path))
    assert result.code == code
    for name, status in statuses.items():
        assert f"{status:8} {name}" in result.out


def test_without_transformers_the_step_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = compare.compare_step(tmp_path)
    assert outcome.status == NOT_RUN
    assert "tilewright[transformers]" in outcome.summary


def test_a_wrong_kernel_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tilewright.bench import workloads

    small = [w for w in workloads.workloads() if w.case.op == "softmax"]
    monkeypatch.setattr(workloads, "workloads", lambda: iter(small))
    monkeypatch.setattr(workloads, "check", lambda workload, backend: "failed: wrong")
    outcome = measure.measure_step(tmp_path)
    assert outcome.status == FAILED
    assert outcome.report["rows"] == []
