"""The CPU kernels on tensors of every layout and state, and with infinities and NaN where nobody looks; on each
instruction set. Both walk the tensors of every op by name: a new one needs no test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import tilewright._cpu as _cpu
from tilewright.catalog import OPS
from tilewright.verify import layouts, magnitude, outside
from tilewright.verify.substitute import covering

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=_cpu.available_isas(), autouse=True)
def _instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    used = _cpu.isa()
    _cpu.set_isa(request.param)
    yield
    _cpu.set_isa(used)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_where_numbers_lie(op: str, dtype: torch.dtype) -> None:
    for case in covering(op, dtype):
        assert list(layouts.problems(case, "cpu")) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", sorted(set(OPS) - {"ffn"}))  # in which everything has a part
def test_what_is_excluded_has_no_part(op: str, dtype: torch.dtype) -> None:
    for case in covering(op, dtype, outside.excluding):
        assert list(outside.problems(case, "cpu")) == []


@pytest.mark.parametrize("dtype", magnitude.MAGNITUDES)
def test_no_exponent_is_above_0_at_any_magnitude_of_scores(dtype: torch.dtype) -> None:
    assert list(magnitude.problems("cpu", dtype)) == []


@pytest.mark.parametrize("dtype", magnitude.MAGNITUDES)
def test_a_sink_far_above_its_keys_has_the_row(dtype: torch.dtype) -> None:
    assert list(magnitude.sink_problems("cpu", dtype)) == []
