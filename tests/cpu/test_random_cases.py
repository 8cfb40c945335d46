"""Random shapes, strides, masks and features: the same ones on every machine, each made by its seed alone."""

from __future__ import annotations

import pytest

from tilewright.catalog import OPS
from tilewright.verify.fuzz import fuzz_case
from tilewright.verify.run import run_case


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("op", OPS)
def test_cpu_kernels_pass_the_gate(op: str, seed: int) -> None:
    case = fuzz_case(seed, [op])
    (record,) = run_case(case, ["cpu"], seed)
    repeat = f"tilewright verify --backend cpu --op {op} --fuzz 1 --seed {seed}"
    assert record.status == "passed", f"{case.spec}: {record.problems}; repeat: {repeat}"
