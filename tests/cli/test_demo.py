"""``tilewright demo``, each of its steps made short."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tilewright.bench.measure import OURS as PREFIX
from tilewright.bench.measure import Built, Function, Item
from tilewright.bench.single import backends_on, items_of
from tilewright.demo import FAILED, NOT_RUN, PASSED, Outcome, compare, measure, verify

from .conftest import Run

OURS = PREFIX + backends_on("cpu")[0]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright import train

    monkeypatch.setattr(verify, "EVERY", 400)
    monkeypatch.setattr(measure, "SECONDS_EACH", 0.0)
    monkeypatch.setattr(measure, "calls", lambda: items_of("softmax", "tiny"))
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
    timed = {(r["mode"], r["provider"]) for r in found["measure"]["rows"] if r["status"] == "timed"}
    assert timed == {(m, p) for m in ("forward", "backward", "both") for p in (OURS, "eager")}
    assert found["measure"]["geometric_mean_speedup"] > 0.0
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


def test_its_calls_exist() -> None:
    found = measure.calls()
    assert {i.facts["op"] for i in found} == {"attention", "softmax", "ffn", "kvcache_attention"}
    assert {i.facts["mode"] for i in found} == {"forward", "both"}
    assert {i.facts["dtype"] for i in found} == {"float32", "bfloat16"}


def test_a_wrong_kernel_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    items = [dataclasses.replace(i, build=lambda bench, of=i.build: _spoiled(of(bench))) for i in _tiny()]
    monkeypatch.setattr(measure, "calls", lambda: items)
    monkeypatch.setattr(measure, "SECONDS_EACH", 0.0)
    outcome = measure.measure_step(tmp_path)
    assert outcome.status == FAILED
    ours = [r for r in outcome.report["rows"] if r["provider"] == OURS]
    assert [r["status"] for r in ours] == ["wrong"] * len(items)
    assert all("device" not in r for r in ours)
    assert [p.split(": ")[1] for p in outcome.report["problems"]] == ["wrong"] * len(items)
    assert not (tmp_path / "speedup.png").exists()


def _tiny() -> list[Item]:
    return items_of("softmax", "tiny")[:2]


def _spoiled(built: Built) -> Built:
    """Ours answers twice what is right."""
    ours = built.providers[OURS]

    def twice() -> Function:
        function = ours()
        return lambda: _double(function())

    return Built({**built.providers, OURS: twice}, built.error)


def _double(result: Any) -> Any:
    return tuple(2 * t for t in result) if isinstance(result, tuple) else 2 * result
