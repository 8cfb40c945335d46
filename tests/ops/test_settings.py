"""A mistake in an environment variable is one clear error, in a program and in the command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SETTINGS = {
    "TILEWRIGHT_CPU_ISA": ("sse9", "portable"),
    "TILEWRIGHT_BACKEND": ("gpu", "'reference'"),
    "TILEWRIGHT_CUDA_EMULATE": ("yes", "accepted are 1"),
}
PROGRAM = """
import torch, tilewright as tw
try:
    tw.softmax(torch.zeros(3), backend=BACKEND)
except ValueError as error:
    print(error)
"""


def _run(name: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, name: SETTINGS[name][0]}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_program_gets_an_exception_that_names_it(name: str) -> None:
    value, accepted = SETTINGS[name]
    asked_for = '"cuda"' if name == "TILEWRIGHT_CUDA_EMULATE" else "None"  # which is read by that backend alone
    done = _run(name, "-c", PROGRAM.replace("BACKEND", asked_for))
    assert name in done.stdout and value in done.stdout and accepted in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_says_it_in_one_line(name: str) -> None:
    done = _run(name, "-m", "tilewright", "explain", "softmax")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and name in done.stderr and done.stderr.count("\n") == 1, done.stderr
