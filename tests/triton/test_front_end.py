"""The launch path as on a GPU, without one and without the interpreter: Triton's front end, the tables, the grids and
the descriptors, on a stand-in for each chip (tilewright.stand_in), in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from tilewright.registry import TABLE

WORKER = Path(__file__).with_name("front_end_worker.py")


def worker(*words: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(WORKER), *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("op", TABLE)
def test_every_case_is_launched_on_every_chip(op: str) -> None:
    found = worker("cases", op)
    assert not found["wrong"], f"{len(found['wrong'])} would fail on a GPU:\n" + "\n".join(found["wrong"][:20])
    # Three dtypes, three chips, forward and backward.
    assert found["cases"] >= 150, found
    assert found["launches"] >= 3 * found["cases"], found


def test_calls_of_many_planes_fit_into_a_grid() -> None:
    """Windowed vision models have more sequences and heads than a grid's second dimension has programs, 65,535."""
    found = worker("planes", "70000")
    assert not found["wrong"], "\n".join(found["wrong"])
    assert found["launches"] >= 12, found


def test_what_a_chip_would_refuse_is_refused() -> None:
    """Otherwise the tests above would show nothing."""
    found = worker("refusals")
    for what, words in {
        "grid": "65535",
        "grid of all": "too large",
        "address": "multiple of 16",
        "stride": "multiple of 16",
        "box": "at most 256",
        "rank": "1 to 5",
        "swizzle": "swizzle",
        "chip without TMA": "compute capability 8.0",
        "shared memory": "shared memory",
    }.items():
        assert words in found[what], f"{what}: {found[what]}"


def test_other_lengths_batches_and_heads_compile_nothing_again() -> None:
    """A compilation takes seconds, and sequences have any length. Rows here are contiguous; their layout may count."""
    for op, kernels in worker("lengths").items():
        assert len(set(kernels)) == len(kernels), f"{op} compiled the same kernel again for another size: {kernels}"


def test_what_tune_measures_is_launched_with_its_key() -> None:
    """In the interpreter one key stands for many, so that only here a call of every key is seen."""
    found = worker("tune")
    assert not found["wrong"], "python/tilewright/tune/workloads.py:\n" + "\n".join(found["wrong"])
    assert found["pairs"] > 100, found


def test_what_was_launched_before_does_not_change_a_kernels_key() -> None:
    """Else a kernel is compiled again that another program, which began with another op, has compiled: seconds each."""
    one, other = worker("keys", "attention", "softmax", "ffn"), worker("keys", "ffn", "softmax", "attention")
    changed = [name for name in one if one[name] != other[name]]
    assert not changed, f"the order of calls has changed the keys of {changed}: see triton_kernels/keys.py"
    assert len(one) > 50, one
