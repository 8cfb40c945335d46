"""The Triton feed-forward kernels, one code path at a time. Without a GPU they run in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright.errors import BackendError
from tilewright.registry import unavailable
from tilewright.verify.case import Case
from tilewright.verify.cases import select_cases
from tilewright.verify.cases.ffn import case
from tilewright.verify.run import run_case

if unavailable("triton") is not None:
    pytest.skip(f"the triton backend {unavailable('triton')}", allow_module_level=True)

from tilewright.triton_kernels import descriptor, ffn, ffn_backward, ffn_product

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALF)
#: Every eleventh built-in case, from another one on for each dtype, so that the three together see more of them.
SAMPLE = [c for i, dtype in enumerate(DTYPES) for c in select_cases(["ffn"], dtypes=[dtype])[3 * i + 1 :: 11]]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(one: Case) -> None:
    (record,) = run_case(one, ["triton"])
    assert record.status == "passed", f"{one.id}: {record.problems}"


@pytest.mark.parametrize("one", SAMPLE, ids=lambda c: c.id)
def test_builtin_case(one: Case) -> None:
    check(one)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Into how many parts each product with a fused epilogue is split, in order."""
    counts: list[int] = []
    inner: Callable[..., int] = ffn_product.parts

    def recorded(*args: Any) -> int:
        counts.append(inner(*args))
        return counts[-1]

    monkeypatch.setattr(ffn, "parts", recorded)
    return counts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_few_rows_share_sums(dtype: torch.dtype, activation: str, launched: list[int]) -> None:
    spec = {"rows": 3, "features": 150, "hidden": 41, "out_features": 40, "biases": True, "residual": True}
    check(case("split", dtype, activation=activation, dropout_p=0.3, **spec))
    assert len(launched) >= 2 and min(launched) > 1


def test_few_rows_of_wide_products_stay_whole(launched: list[int]) -> None:
    check(case("whole", torch.bfloat16, rows=2, features=70, hidden=80, out_features=100, activation="geglu"))
    assert set(launched) == {1}


def test_many_rows_stay_whole(launched: list[int]) -> None:
    check(case("whole", torch.float32, rows=17, features=200, hidden=8, out_features=8))
    assert set(launched) == {1}


@pytest.mark.parametrize("depth", [63, 64, 65, 128, 129])
def test_depths_around_a_block(depth: int) -> None:
    check(case(f"depth_{depth}", torch.float32, rows=20, features=depth, hidden=depth, out_features=12))


@pytest.mark.parametrize("gradients", [["x"], ["w_in"], ["w_out"], ["b_in"], ["b_out"]])
@pytest.mark.parametrize("activation", ["relu2", "geglu_tanh"])
def test_each_gradient_alone(gradients: list[str], activation: str) -> None:
    options = {"biases": True, "dropout_p": 0.2, "recompute": gradients == ["w_out"]}
    check(case("alone", torch.bfloat16, rows=70, activation=activation, gradients=gradients, **options))


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each large product's operands reach the kernel, in order: "" by pointers, else with TMA.

    One tile is enough for TMA here, and a program that computes tile after tile computes all of them."""
    found: list[str] = []
    inner: Callable[..., ffn_product.Route] = ffn_product.route

    def recorded(*args: Any, **options: Any) -> ffn_product.Route:
        chosen = inner(*args, **options)
        found.append(chosen.tma)
        return chosen

    for module in (ffn, ffn_backward, ffn_product):
        monkeypatch.setattr(module, "route", recorded)
    monkeypatch.setattr(ffn_product, "multiprocessors", lambda _: 1)
    return found


needs_tma = pytest.mark.skipif(not descriptor.has_tma(torch.device(DEVICE)), reason="this GPU has no TMA")


@pytest.mark.parametrize("tma", [pytest.param(True, marks=needs_tma), False], ids=["tma", "pointers"])
@pytest.mark.parametrize(("activation", "dtype"), [("gelu", torch.bfloat16), ("geglu_tanh", torch.float16)])
def test_ragged_tiles(
    activation: str, dtype: torch.dtype, tma: bool, routes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that no block divides, so many tiles that a program computes several, and every part of the epilogues."""
    monkeypatch.setattr(ffn_product, "has_tma", lambda _: tma)
    sizes = {"rows": 40, "features": 40, "hidden": 88, "out_features": 72}
    check(case("ragged", dtype, activation=activation, biases=True, residual=True, dropout_p=0.3, **sizes))
    # Of the forward; of dpre and dx; of dw_in and dw_out, which on a GPU are torch's.
    wanted = {"kk", "kn", "mn"} if DEVICE == "cpu" else {"kk", "kn"}
    assert set(routes) == (wanted if tma else {""})


@needs_tma
@pytest.mark.parametrize("activation", ["silu", "reglu"])
def test_transposed_weights_and_inputs(activation: str, routes: list[str]) -> None:
    given = inputs(75, torch.bfloat16, inner=80 if activation == "reglu" else 40, out=72)
    turned = {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in given.items()}
    turned["x"] = torch.zeros(24, 80, device=DEVICE, dtype=torch.bfloat16)[:, :75].t().copy_(given["x"])
    expected, got = (tw.ffn(**these, activation=activation, backend="triton") for these in (given, turned))
    assert torch.allclose(got, expected, rtol=2**-7, atol=2**-7)
    # A gate's columns and the up projection's are one block only in a weight's rows.
    assert routes == ["kk", "kk", "" if activation == "reglu" else "mn", "kn"]


@needs_tma
def test_tma_only_where_layout_type_and_size_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffn_product, "multiprocessors", lambda _: 1)

    def tma(**changed: Any) -> str:
        options = {"columns": 96, **{name: changed.pop(name) for name in ("columns", "gated") if name in changed}}
        a, b, out = (changed.get(name, whole(96, 96)) for name in ("a", "b", "out"))
        return ffn_product.route("ffn_in", a, b, "nk", out, **options).tma

    def whole(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(rows, columns, device=DEVICE, dtype=dtype)

    assert tma() == "kk"
    assert tma(a=whole(96, 96).t(), b=whole(96, 96).t()) == "mn"
    assert tma(a=whole(96, 104)[:, :96]) == "kk"
    assert tma(a=whole(96, 104)[:, 8:], b=whole(104, 96)[8:]) == "kk"
    assert tma(a=whole(96, 100)[:, :96]) == "", "rows that do not start at multiples of 16 bytes"
    assert tma(a=whole(96, 104)[:, 1:97]) == "", "an address that is no multiple of 16 bytes"
    assert tma(a=whole(96, 192)[:, ::2]) == "", "elements that are no neighbours"
    assert tma(a=whole(1, 96).expand(96, 96)) == "", "a stride of 0"
    assert tma(a=whole(96, 0)) == tma(a=whole(96, 96)[:, :0]) == "", "no depth"
    assert tma(b=whole(96, 104)[:, 1:97]) == "", "a misaligned weight"
    assert tma(out=whole(96, 90)) == "" and tma(out=None) == "kk", "a result of odd width"
    assert tma(b=whole(96, 96).t(), gated=True) == "" and tma(gated=True) == "kk"
    assert tma(a=whole(96, 96, torch.float16), b=whole(96, 96, torch.float16)) == "kk"
    assert tma(a=whole(96, 96, torch.float32), b=whole(96, 96, torch.float32)) == ""
    monkeypatch.setattr(ffn_product, "multiprocessors", lambda _: 100)
    assert tma() == "", "fewer tiles than multiprocessors"


def inputs(rows: int, dtype: torch.dtype = torch.float32, inner: int = 40, out: int = 30) -> dict[str, torch.Tensor]:
    shapes = {"x": (rows, 24), "w_in": (inner, 24), "w_out": (out, 40), "b_in": (inner,), "b_out": (out,)}
    return {name: torch.randn(shape, device=DEVICE, dtype=dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("rows", [5, 40], ids=["few rows", "many rows"])
@pytest.mark.parametrize("p", [0.25, 0.75, 1.0])
def test_dropout_drops_what_the_reference_drops(rows: int, p: float) -> None:
    given = inputs(rows)
    found = {}
    for backend in ("triton", "reference"):
        torch.manual_seed(11)
        found[backend] = tw.ffn(**given, dropout_p=p, backend=backend)
    assert torch.equal(found["triton"] == 0, found["reference"] == 0)
    assert torch.allclose(found["triton"], found["reference"], atol=1e-4)


def test_any_strides_are_read_in_place() -> None:
    given = inputs(20)
    strided = {
        "x": torch.randn(20, 48, device=DEVICE)[:, ::2].copy_(given["x"]),
        "w_in": given["w_in"].t().contiguous().t(),
        "w_out": torch.randn(60, 40, device=DEVICE)[::2].copy_(given["w_out"]),
    }
    assert torch.equal(tw.ffn(**given, backend="triton"), tw.ffn(**{**given, **strided}, backend="triton"))


def test_inputs_are_left_alone_and_results_repeat() -> None:
    given = {name: t.requires_grad_() for name, t in inputs(50, torch.bfloat16, inner=80).items()}
    before = {name: t.detach().clone() for name, t in given.items()}

    def run() -> list[torch.Tensor]:
        torch.manual_seed(5)
        out = tw.ffn(**given, activation="swiglu", dropout_p=0.4, backend="triton")
        return [out, *torch.autograd.grad(out.float().square().sum(), list(given.values()))]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    assert all(torch.equal(t, before[name]) for name, t in given.items())


def test_nan_and_infinity_are_not_hidden() -> None:
    given = inputs(3)
    given["x"][1, 0] = torch.nan
    for activation in ("relu", "relu2", "gelu", "gelu_tanh", "silu"):
        out = tw.ffn(**given, activation=activation, backend="triton")
        assert out[1].isnan().all() and out[[0, 2]].isfinite().all(), activation


def test_float64_is_refused_in_words() -> None:
    with pytest.raises(BackendError, match="float64"):
        tw.ffn(**inputs(2, torch.float64), backend="triton")
