"""The command as a whole: help, version, exit codes and one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run

COMMANDS = ("info", "explain", "verify", "tune", "generate", "demo")


def test_no_arguments_and_help_list_the_commands(run: Run) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        result = run(*arguments)
        assert result.code == 0
        for command in COMMANDS:
            assert command in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_described(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert len(result.out.splitlines()[2].strip()) > 10


def test_version(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version").out == f"tilewright {version('tilewright')}\n"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["nonsense"], "nonsense"),
        (["verify", "--nonsense"], "--nonsense"),
        (["verify", "--op", "nonsense"], "attention, varlen_attention"),
        (["verify", "--dtype", "int8"], "bfloat16"),
        (["verify", "--case", "no such case"], "--list"),
        (["verify", "--backend", "nonsense"], "'reference'"),
        (["verify", "--fuzz", "2", "--case", "plain"], "--case"),
        (["verify", "--fuzz", "-1"], "--fuzz"),
        (["explain"], "op"),
        (["explain", "nonsense"], "kvcache_attention"),
        (["explain", "attention", "--shape", "2,3"], "B,H,S,D"),
        (["explain", "attention", "--shape", "2,3,x,5"], "whole numbers"),
        (["explain", "attention", "--kv-heads", "3"], "multiple"),
        (["explain", "attention", "--window", "3"], "LEFT,RIGHT"),
        (["explain", "attention", "--causal", "sideways"], "bottom_right"),
        (["explain", "attention", "--mask", "int"], "bool, float"),
        (["explain", "attention", "--device", "quantum"], "quantum"),
        (["explain", "softmax", "--dim", "5"], "dim=5"),
        (["explain", "ffn", "--activation", "nonsense"], "swiglu"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Run, arguments: list[str], names: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert names in result.err


def test_a_backend_that_is_not_here_is_exit_code_1(run: Run) -> None:
    from tilewright.registry import backends

    missing = [name for name, reason in backends().items() if reason is not None]
    for name in missing:
        result = run("verify", "--backend", name)
        assert result.code == 1
        assert str(backends()[name]) in result.err


def test_info_reports_backends_with_reasons(run: Run, tmp_path: Path) -> None:
    from tilewright.registry import backends

    file = tmp_path / "info.json"
    result = run("info", "--json", str(file))
    found = json.loads(file.read_text())
    assert found["backends"] == backends()
    assert found["packages"]["torch"] in result.out
    assert found["cpu"] in result.out
    for name, reason in backends().items():
        assert name in result.out
        assert reason is None or reason in result.out


def test_json_to_a_folder_that_does_not_exist(run: Run, tmp_path: Path) -> None:
    result = run("info", "--json", str(tmp_path / "no" / "file.json"))
    assert result.code == 1
    assert result.err.startswith("error: ")


def test_the_module_runs_and_plain_output_has_no_escapes() -> None:
    environment = {**os.environ, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "tilewright", "explain", "softmax"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("softmax: runs on ")
    assert done.stderr == ""
