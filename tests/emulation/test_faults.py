"""A kernel that is right runs whatever the order of its threads; wrong in one way, it is reported for that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

X = np.random.default_rng(0).standard_normal(192).astype(np.float32)

#: What is wrong with the kernel, and the faults that may be found first, by the order of threads.
FAULTS = {
    "no wait": "copy-in-flight",
    "one group too few": "copy-in-flight",
    "no barrier": "shared-unwritten|shared-race|copy-in-flight",
    "barrier in a branch": "divergence",
    "barrier that half reach": "divergence|deadlock",
    "early exit": "divergence",
    "off by one": "shared-out-of-range",
    "misaligned copy": "shared-misaligned|shared-out-of-range",
    "copy past the end": "shared-out-of-range",
    "shuffle in a branch": "divergence|deadlock",
    "write after read": "shared-race",
    "past the tensor": "global-out-of-range|global-race",
    "same place": "global-race",
    "writes an input": "global-read-only",
    "reads the output": "global-unwritten",
    "misaligned vector": "global-misaligned|global-out-of-range",
}


@pytest.mark.parametrize("seed", range(10))
def test_a_right_kernel_is_right_in_any_order(emulator: Any, seed: int) -> None:
    expected = X.reshape(-1, 64)[:, ::-1].flatten()
    assert np.array_equal(emulator.reverse(X, "", seed), expected)


@pytest.mark.parametrize("wrong", FAULTS)
@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_kernel_is_reported(emulator: Any, wrong: str, seed: int) -> None:
    with pytest.raises(
        emulator.KernelFault, match=rf"^({FAULTS[wrong]}) in reverse, block \(\d, 0, 0\).*test_module\.cpp:\d+: .*seed"
    ):
        emulator.reverse(X, wrong, seed)


def test_the_emulator_works_after_a_fault(emulator: Any) -> None:
    with pytest.raises(emulator.KernelFault):
        emulator.reverse(X, "no barrier", 1)
    assert np.array_equal(emulator.reverse(X, "", 1), X.reshape(-1, 64)[:, ::-1].flatten())
