"""Triton softmax in the interpreter (or on a GPU): a sample of the cases, and every way through the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tilewright as tw
from tilewright.backends import triton_softmax as adapter
from tilewright.errors import BackendError
from tilewright.reference import softmax as reference
from tilewright.registry import unavailable
from tilewright.triton_kernels.softmax_table import TABLE, WIDEST
from tilewright.verify.case import Case
from tilewright.verify.cases import select_cases
from tilewright.verify.run import run_case

pytestmark = pytest.mark.skipif(unavailable("triton") is not None, reason=str(unavailable("triton")))

OPS = {"softmax": tw.softmax, "log_softmax": tw.log_softmax}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

#: One case in thirteen keeps this quick in the interpreter; `tilewright verify --backend triton` runs all.
SAMPLE = select_cases(list(OPS), DTYPES)[::13]


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[adapter.Plan]:
    """The plans of all launches of the test."""
    seen: list[adapter.Plan] = []
    launch = adapter._launch
    monkeypatch.setattr(adapter, "_launch", lambda p, *a, **k: (seen.append(p), launch(p, *a, **k))[1])
    return seen


def way(plan: adapter.Plan) -> str:
    if plan.pieces > 1:
        return "split"
    if plan.pieces == 1:
        return "looped"
    return "narrow" if plan.options["ROWS"] > 1 else "one row"


def check(op: str, x: Tensor, dy: Tensor | None = None, **options: Any) -> Tensor:
    """Outputs and gradients against the reference in float64; answers y."""
    x = x.detach().requires_grad_()
    mask = options.pop("mask", None)
    has_gradient = mask is not None and mask.dtype != torch.bool
    mask = mask.detach().requires_grad_() if has_gradient else mask
    before = [t.detach().clone() for t in (x, mask) if t is not None]
    y = OPS[op](x, mask=mask, backend="triton", **options)
    dy = torch.randn_like(y) if dy is None else dy
    inputs = [x, mask] if has_gradient else [x]
    found = torch.autograd.grad(y, inputs, dy)
    for t, copy in zip((t for t in (x, mask) if t is not None), before, strict=True):
        assert torch.equal(t, copy), "an input has changed"

    wide = [t.detach().double().requires_grad_() for t in inputs]
    wide_mask = wide[1] if has_gradient else mask
    expected = OPS[op](wide[0], mask=wide_mask, backend="reference", **options)
    gradients = torch.autograd.grad(expected, wide, dy.double())
    bound = 10 * torch.finfo(x.dtype).eps
    for a, e in zip((y, *found), (expected, *gradients), strict=True):
        finite = e.detach()[e.isfinite()].abs()
        size = float(finite.max()) if finite.numel() else 0.0
        torch.testing.assert_close(a.double(), e, rtol=bound, atol=bound * size)
    return y.detach()


@pytest.mark.parametrize("case", SAMPLE, ids=lambda c: c.id)
def test_cases(case: Case) -> None:
    (record,) = run_case(case, ["triton"])
    assert record.status == "passed", record.problems


#: Name, shape, dim, and the way of each of forward and backward, with what the interpreter's table has.
WAYS = [
    ("narrow", (37, 20), -1, ("narrow", "narrow")),
    ("one_row", (3, 3000), -1, ("one row", "one row")),
    ("two_ways", (5, 20_000), -1, ("one row", "looped")),
    ("looped", (5, 70_000), -1, ("looped", "looped")),
    ("split", (2, 150_000), -1, ("split", "split")),
    ("across", (40, 3, 50), 0, ("narrow", "narrow")),
    ("across_looped", (600, 70), 0, ("looped", "looped")),
    ("across_split", (3000, 20), 0, ("split", "split")),
    ("across_two_outer", (3, 530, 2, 17), 1, ("looped", "looped")),
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "dim", "ways"), [w[1:] for w in WAYS], ids=[w[0] for w in WAYS])
def test_every_way_is_taken_and_right(op: str, shape: Any, dim: int, ways: Any, plans: list[adapter.Plan]) -> None:
    check(op, torch.randn(shape, device=DEVICE) * 3, dim=dim, scale=0.7)
    if DEVICE == "cpu":
        assert tuple(way(p) for p in plans) == ways


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(9, 20), (4, 3000), (5, 40_000), (2, 40_000)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_excluded_rows_on_every_way(op: str, shape: tuple[int, int], kind: str) -> None:
    """Row 1 is excluded entirely, and in row 0 everything but the last column."""
    keep = torch.rand(shape) < 0.6
    keep[1] = False
    keep[0, :-1], keep[0, -1] = False, True
    mask = keep if kind == "bool" else torch.randn(shape).masked_fill(~keep, -torch.inf)
    y = check(op, torch.randn(shape, device=DEVICE), mask=mask.to(DEVICE))
    assert (y[1] == (0.0 if op == "softmax" else -torch.inf)).all()
    assert y[0, -1] == (1.0 if op == "softmax" else 0.0)


@pytest.mark.parametrize("causal", ["top_left", "bottom_right"])
@pytest.mark.parametrize("shape", [(5, 40_000), (9, 3, 50), (1, 1, 40_000), (2, 40_000)])
def test_causal(causal: str, shape: tuple[int, ...]) -> None:
    check("softmax", torch.randn(shape, device=DEVICE), causal=causal)
    check("log_softmax", torch.randn(shape, device=DEVICE), causal=causal)


def test_a_causal_bound_reads_only_what_is_kept() -> None:
    x = torch.randn(40, 40, device=DEVICE)
    x = x.masked_fill(~torch.ones_like(x).tril().bool(), torch.nan)
    assert tw.softmax(x, causal="top_left", backend="triton").isfinite().all()


@pytest.mark.parametrize("width", [5, 40_000])
def test_nan_stays_nan(width: int) -> None:
    x = torch.randn(2, width, device=DEVICE)
    x[0, 3] = torch.nan
    for f in OPS.values():
        y = f(x, backend="triton")
        assert y[0].isnan().all() and y[1].isfinite().all()


def test_more_than_three_row_dimensions(plans: list[adapter.Plan]) -> None:
    x = torch.randn(2, 3, 2, 3, 2, 4, device=DEVICE)[:, ::2, :, ::2, :, :3].permute(3, 0, 5, 1, 4, 2)
    check("softmax", x, dim=2, mask=torch.randn(2, 1, 3, 1, 2, 1, device=DEVICE))
    assert len(plans) > 2


def test_a_plain_tensor_is_one_row_dimension() -> None:
    shape, strides = (4, 5, 6, 64), (1920, 384, 64, 1)
    p = adapter.plan("softmax_forward", shape, 3, (strides, strides, (0,) * 4), False, torch.device(DEVICE))
    assert p.dim is None
    assert p.sizes == (1, 120, 64)
    assert p.strides[:4] == (0, 0, 64, 1)


@pytest.mark.skipif(DEVICE != "cpu", reason="memory that is not touched is free on a CPU only")
@pytest.mark.parametrize("strides", [(2**31 + 8, 1), (1, 2**31 + 8)], ids=["rows", "columns"])
def test_offsets_past_32_bits(strides: tuple[int, int], plans: list[adapter.Plan]) -> None:
    x = torch.empty(2**31 + 64, dtype=torch.bfloat16).as_strided((2, 2), strides)
    x.copy_(torch.randn(2, 2))
    check("softmax", x)
    assert plans[0].options["WIDE"]


@pytest.mark.parametrize(
    ("programs", "steps", "pieces"), [(1, 1000, 128), (1, 5, 4), (3, 1000, 32), (132, 1000, 1), (70, 1000, 1)]
)
def test_pieces_fill_the_gpu(programs: int, steps: int, pieces: int) -> None:
    assert adapter._pieces(programs, steps, 132) == pieces


@pytest.mark.parametrize("op", OPS)
def test_float64_is_refused_in_words(op: str) -> None:
    with pytest.raises(BackendError, match="float64; Triton kernels take float32, float16 and bfloat16"):
        OPS[op](torch.randn(2, 3, dtype=torch.float64), backend="triton")


def test_scalars_and_empty_tensors() -> None:
    for shape in ((), (0,), (0, 4), (4, 0)):
        check("softmax", torch.randn(shape, device=DEVICE), dim=0)


def test_every_width_has_a_configuration() -> None:
    for table in TABLE.values():
        for kernel, widest in WIDEST.items():
            for prefix, columns in zip(("", "across "), widest, strict=True):
                for power in range(columns.bit_length()):
                    assert table[kernel][f"{prefix}{1 << power}"][0]["COLUMNS"] == 1 << power


def test_reference_is_not_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "forward", None)
    tw.softmax(torch.randn(3, 4, device=DEVICE), backend="triton")
