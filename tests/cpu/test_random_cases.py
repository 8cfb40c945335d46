"""hypothesis draws shapes, strides, masks and features, and shrinks what fails to a small case."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilewright.catalog import OPS
from tilewright.verify.case import DTYPES
from tilewright.verify.fuzz import random_case
from tilewright.verify.run import run_case

# deadline: a draw that misses the gate by chance is repeated many times. derandomize: the same examples everywhere.
MODERATE = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("op", OPS)
@MODERATE
@given(dtype=st.sampled_from(list(DTYPES.values())), rng=st.randoms(use_true_random=False), seed=st.integers(0, 10**6))
def test_cpu_kernels_pass_the_gate(op: str, dtype: torch.dtype, rng: random.Random, seed: int) -> None:
    case = random_case(rng, op, "random", dtype)
    (record,) = run_case(case, ["cpu"], seed)
    assert record.status == "passed", f"{case.spec}: {record.problems}"
