"""The CUDA feed-forward kernels, one code path at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tilewright as tw
from tilewright.backends import cuda
from tilewright.errors import BackendError
from tilewright.verify.case import Case
from tilewright.verify.cases import select_cases
from tilewright.verify.cases.ffn import case
from tilewright.verify.run import run_case

#: Every built-in case: in the emulator they take half a minute together.
CASES = [c for c in select_cases(["ffn"]) if c.dtype != torch.float64]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_EVERYTHING: dict[str, Any] = {"biases": True, "residual": True, "dropout_p": 0.3}

#: Products of so many results that they are cut into large tiles: with operands in rows, and B in columns; of gate and
#: up projection; with both in columns.
LARGE = (
    case(
        "large", torch.float32, rows=1290, features=24, hidden=1288, out_features=13, gradients=["b_in"], **_EVERYTHING,
    ),
    case(
        "large_gated", torch.bfloat16, rows=1290, features=13, hidden=650, out_features=16, activation="geglu",
        gradients=["x", "b_in"], **_EVERYTHING,
    ),
    case("large_weights", torch.float16, rows=20, features=1288, hidden=1290, out_features=8, gradients=["w_in"]),
    case("large_weights", torch.float32, rows=20, features=1288, hidden=1290, out_features=8, gradients=["w_in"]),
)  # fmt: skip
#: The path without tiles: one chunk of 16 bytes, several rounds of all warps, and ends of both.
FEW_ROWS = (
    ("short", {"rows": 3, "features": 3, "hidden": 9, "out_features": 5, "activation": "relu2"}),
    ("long", {"rows": 16, "features": 1352, "hidden": 24, "out_features": 31, "activation": "gelu"}),
    ("odd", {"rows": 9, "features": 1031, "hidden": 35, "out_features": 18, "activation": "silu"}),
    ("gated", {"rows": 2, "features": 40, "hidden": 1037, "out_features": 24, "activation": "swiglu"}),
)


def _check(one: Case) -> None:
    (record,) = run_case(one, ["cuda"])
    assert record.status == "passed", record.problems


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.id)
def test_builtin_case(one: Case) -> None:
    _check(one)


@pytest.mark.parametrize("one", LARGE, ids=lambda c: c.id)
def test_large_tiles(one: Case) -> None:
    _check(one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "spec"), FEW_ROWS, ids=[name for name, _ in FEW_ROWS])
def test_few_rows(name: str, spec: dict[str, Any], dtype: torch.dtype) -> None:
    _check(case(name, dtype, gradients=[], **spec, **_EVERYTHING))


def _arguments(rows: int, dtype: torch.dtype, features: int = 70, hidden: int = 90, out: int = 40) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"x": (rows, features), "w_in": (2 * hidden, features), "w_out": (out, hidden)}
    shapes |= {"b_in": (2 * hidden,), "b_out": (out,)}  # type: ignore[dict-item]
    return {n: (torch.randn(s) / s[-1] ** 0.5).to(dtype).requires_grad_() for n, s in shapes.items()}


def _run(arguments: dict[str, Tensor], upstream: Tensor, **options: Any) -> list[Tensor]:
    torch.manual_seed(1)  # of dropout
    out = tw.ffn(**arguments, backend="cuda", dropout_p=0.2, activation="swiglu", **options)
    return [out, *torch.autograd.grad(out, list(arguments.values()), upstream)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the order of threads is drawn from a seed in the emulator only")
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("rows", "recompute"), [(7, False), (70, True)])
def test_results_do_not_depend_on_the_order_of_threads(rows: int, recompute: bool, dtype: torch.dtype) -> None:
    arguments, upstream = _arguments(rows, dtype), torch.randn(rows, 40).to(dtype)
    found = []
    for seed in range(20):
        cuda.kernels().set_seed(seed)
        found.append(_run(arguments, upstream, recompute=recompute))
    cuda.kernels().set_seed(0)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("rows", [5, 80])
@pytest.mark.parametrize("layout", ["aligned rows, ragged ends", "odd rows", "columns", "every other"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_of_operands_changes_no_bit(dtype: torch.dtype, layout: str, rows: int) -> None:
    def laid_out(t: Tensor) -> Tensor:
        if t.dim() == 1:
            return t
        rows, columns = t.shape
        wide = {"aligned rows, ragged ends": -(-columns // 8) * 8, "odd rows": columns + 1, "every other": 2 * columns}
        if layout == "columns":
            return t.detach().t().contiguous().t().requires_grad_()
        memory = torch.full((rows, wide[layout]), float("nan"), dtype=t.dtype)
        view = memory[:, ::2] if layout == "every other" else memory[:, :columns]
        return view.copy_(t.detach()).requires_grad_()

    arguments, upstream = _arguments(rows, dtype, 71, 93, 45), torch.randn(rows, 45).to(dtype)
    expected = _run(arguments, upstream)
    found = _run({n: laid_out(t) for n, t in arguments.items()}, laid_out(upstream).detach())
    # A product of few rows takes another path where its weights lie in columns: the same sums in another order.
    exactly = rows > 16 or layout in ("aligned rows, ragged ends", "odd rows")
    eps = 0.0 if exactly else 4 * torch.finfo(dtype).eps
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=eps, rtol=eps)


@pytest.mark.parametrize("activation", ["relu", "relu2", "gelu", "gelu_tanh", "silu"])
def test_activations_have_float32s_precision(activation: str) -> None:
    """Through products by 1: values relative to themselves, also where they are next to 0, and slopes. Further out the
    rounding of the exponential's argument, which torch has as well, would hide everything else."""
    x = torch.linspace(-3.0, 3.0, 1601)[:, None].requires_grad_()

    def run(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        one = torch.ones(1, 1, dtype=x.dtype)
        out = tw.ffn(x, one, one, activation=activation, backend=backend)
        return out, torch.autograd.grad(out.sum(), [x])[0]

    value, slope = run(x, "cuda")
    expected, expected_slope = run(x.detach().double().requires_grad_(), "reference")
    assert torch.allclose(value.double(), expected, rtol=1.5e-6, atol=0.0)
    assert torch.allclose(slope.double(), expected_slope, rtol=0.0, atol=5e-7)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "relu2", "swiglu", "geglu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_saturate(activation: str, dtype: torch.dtype) -> None:
    """Of the largest numbers, values and slopes are limits, not NaN."""
    gated = activation in ("swiglu", "geglu")
    numbers = [-3e38, -1e20, -100.0, 100.0, 1e20]
    if not gated:  # up = 0 x + 1 would be NaN
        numbers += [-float("inf"), float("inf")]
    x = torch.tensor(numbers, dtype=dtype)[:, None].requires_grad_()
    if activation == "relu2":
        x = x.detach().clamp(max=1e18).requires_grad_()
    w_in = torch.ones(2 if gated else 1, 1, dtype=dtype)
    b_in = torch.zeros(2, dtype=dtype) if gated else None
    if gated:
        w_in[1], b_in = 0.0, torch.tensor([0.0, 1.0], dtype=dtype)  # up is 1
    out = tw.ffn(x, w_in, torch.ones(1, 1, dtype=dtype), b_in=b_in, activation=activation, backend="cuda")
    (dx,) = torch.autograd.grad(out.sum(), [x])
    positive = x.detach().clamp(min=0.0)
    assert torch.allclose(out.detach(), positive.square() if activation == "relu2" else positive, atol=1e-30)
    expected = 2 * positive if activation == "relu2" else (positive > 0).to(dtype)
    assert torch.allclose(dx, expected, atol=1e-30)


def test_float64_is_refused() -> None:
    w = torch.randn(4, 4, dtype=torch.float64)
    with pytest.raises(BackendError, match="float64"):
        tw.ffn(torch.randn(3, 4, dtype=torch.float64), w, w, backend="cuda")
