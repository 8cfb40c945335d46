"""``tilewright verify``: what it prints, its exit codes, its file, and that a printed command repeats a failure."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from verify import adversaries as bad  # tests/verify

from .conftest import Run


def test_passing_cases(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    result = run("verify", "--backend", "reference", "--op", "softmax", "--case", "mask_bool*", "--json", str(file))
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split()[:6] == ["op", "backend", "dtype", "passed", "failed", "refused"]
    assert [line.split()[:6] for line in lines[1:5]] == [
        ["softmax", "reference", dtype, "5", "0", "0"] for dtype in ("float32", "float16", "bfloat16", "float64")
    ]
    assert "20 passed, 0 failed, 0 refused" in lines[-1]
    found = json.loads(file.read_text())
    assert (found["passed"], found["failed"], found["refused"], len(found["records"])) == (20, 0, 0, 20)
    tensor = found["records"][0]["tensors"][0]
    assert tensor["tensor"] == "y"
    assert tensor["max_error"] <= tensor["max_limit"]
    assert found["environment"]["packages"]["torch"]


def test_a_failure_is_exit_code_1_with_the_command_that_repeats_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bad.install(monkeypatch, "softmax", bad.zeros("softmax"))
    result = run("verify", "--backend", bad.BACKEND, "--op", "softmax", "--case", "width_100", "--seed", "7")
    assert result.code == 1
    assert "0 passed, 4 failed, 0 refused" in result.out
    command = next(line for line in result.out.splitlines() if line.startswith("  repeat: "))
    words = shlex.split(command.removeprefix("  repeat: "))
    assert words[0] == "tilewright"
    again = run(*words[1:])
    assert again.code == 1
    assert "0 passed, 1 failed, 0 refused" in again.out


def test_a_failing_random_case_is_repeated_by_its_own_seed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bad.install(monkeypatch, "ffn", bad.nan_in_one_row("ffn"))
    result = run("verify", "--backend", bad.BACKEND, "--op", "ffn", "--dtype", "float32", "--fuzz", "4", "--seed", "10")
    assert result.code == 1
    failed = [line for line in result.out.splitlines() if line.startswith("FAILED")]
    commands = [line for line in result.out.splitlines() if line.startswith("  repeat: ")]
    again = run(*shlex.split(commands[-1].removeprefix("  repeat: "))[1:])
    assert [line for line in again.out.splitlines() if line.startswith("FAILED")] == failed[-1:]


def test_a_refusal_is_shown_and_is_no_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    bad.install(monkeypatch, "softmax", replace(bad.honest("softmax"), unsupported=lambda call: "only on Sundays"))
    result = run("verify", "--backend", bad.BACKEND, "--op", "softmax", "--case", "scalar")
    assert result.code == 0
    assert f"refused: {bad.BACKEND} softmax: only on Sundays" in result.out


def test_list(run: Run) -> None:
    result = run("verify", "--list", "--op", "ffn", "--dtype", "float64", "--case", "rows_*")
    assert result.code == 0
    assert result.out.splitlines()[0] == "ffn/rows_1/float64"
