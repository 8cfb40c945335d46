"""The CUDA softmax kernels, one code path at a time."""

from __future__ import annotations

import pytest
import torch

import tilewright as tw
from tilewright.backends import cuda
from tilewright.errors import BackendError
from tilewright.verify.case import Case
from tilewright.verify.cases import select_cases
from tilewright.verify.run import run_case

#: Every built-in case: in the emulator they take seconds together.
CASES = [c for c in select_cases(["softmax", "log_softmax"]) if c.dtype != torch.float64]

#: A width for each division of rows: lanes of a warp, a warp, a block, loops, and pieces for several blocks.
WIDTHS = (5, 64, 1000, 9000, 16385, 40000)


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.id)
def test_builtin_case(one: Case) -> None:
    (record,) = run_case(one, ["cuda"])
    assert record.status == "passed", record.problems


@pytest.mark.skipif(torch.cuda.is_available(), reason="the order of threads is drawn from a seed in the emulator only")
@pytest.mark.parametrize("width", WIDTHS)
def test_results_do_not_depend_on_the_order_of_threads(width: int) -> None:
    x = torch.randn(3, width, requires_grad=True)
    found = []
    for seed in range(20):
        cuda.kernels().set_seed(seed)
        y = tw.log_softmax(x, causal=None, backend="cuda")
        found.append((y, *torch.autograd.grad(y.square().sum(), [x])))
    cuda.kernels().set_seed(0)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_float64_is_refused() -> None:
    with pytest.raises(BackendError, match="float64"):
        tw.softmax(torch.randn(3, 4, dtype=torch.float64), backend="cuda")
