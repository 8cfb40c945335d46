"""float32 goes through the tensor cores in parts, of which an infinity has one: results are what float32's arithmetic
gives all the same, and where they are finite they are as exact as without infinities around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tilewright as tw

INF = float("inf")


def _same(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """The same infinities and NaN, and what is finite to float32's precision."""
    finite = expected.isfinite()
    assert finite.any() and not finite.all(), "the case has to have both"
    other, wanted = found.double()[~finite], expected[~finite]
    assert torch.equal(other.isnan(), wanted.isnan()), f"NaN differs: {other[other.isnan() != wanted.isnan()][:5]}"
    assert torch.equal(other[~other.isnan()], wanted[~wanted.isnan()]), "an infinity differs"
    torch.testing.assert_close(found.double()[finite], expected[finite], rtol=2e-6, atol=2e-6 * scale)


def _run(op: Any, inputs: dict[str, Tensor], wanted: tuple[str, ...], backend: str, **options: Any) -> list[Tensor]:
    dtype = torch.float64 if backend == "reference" else torch.float32
    given = {name: t.detach().to(dtype).requires_grad_(name in wanted) for name, t in inputs.items()}
    out = op(**given, backend=backend, **options)
    leaves = [given[name] for name in wanted]
    return [out.detach(), *(torch.autograd.grad(out.sum(), leaves) if leaves else ())]


def _attention(seqlen_q: int, seqlen_k: int = 150) -> dict[str, Tensor]:
    q, k, v = torch.randn(1, 2, seqlen_q, 24), torch.randn(1, 2, seqlen_k, 24), torch.randn(1, 2, seqlen_k, 24)
    q[..., 5] = q[..., 5].abs() + 0.1  # so that every product with an infinity of column 5 has its sign
    k[..., 7] = k[..., 7].abs() + 0.1
    return {"q": q, "k": k, "v": v}


@pytest.mark.parametrize("seqlen_q", [3, 70])
def test_a_score_of_minus_infinity_excludes_its_key(seqlen_q: int) -> None:
    inputs = _attention(seqlen_q)
    inputs["k"][:, :, ::7, 5] = -INF
    kept = torch.ones(150, dtype=torch.bool)
    kept[::7] = False
    found = _run(tw.attention, inputs, ("q", "k", "v"), "cuda")
    expected = _run(tw.attention, inputs, ("q", "k", "v"), "reference")
    without = {"q": inputs["q"], "k": inputs["k"][:, :, kept], "v": inputs["v"][:, :, kept]}
    torch.testing.assert_close(found[0], _run(tw.attention, without, (), "cuda")[0], rtol=2e-6, atol=2e-6)
    _same(found[1], expected[1])  # dq, where 0 times the infinity is NaN
    for a, b in ((found[0], expected[0]), *zip(found[2:], expected[2:], strict=True)):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("seqlen_q", [3, 70])
def test_a_query_with_an_infinite_score_spoils_itself_alone(seqlen_q: int) -> None:
    inputs = _attention(seqlen_q)
    inputs["q"][0, 1, seqlen_q // 2, 7] = INF
    (found,), (expected,) = (_run(tw.attention, inputs, (), backend) for backend in ("cuda", "reference"))
    _same(found, expected)


@pytest.mark.parametrize("seqlen_q", [3, 70])
def test_infinite_values_are_weighted(seqlen_q: int) -> None:
    inputs = _attention(seqlen_q)
    inputs["v"][0, 0, 33, 2], inputs["v"][0, 0, 34, 3], inputs["v"][0, 0, 35, 3] = -INF, INF, -INF
    (found,), (expected,) = (_run(tw.attention, inputs, (), backend) for backend in ("cuda", "reference"))
    _same(found, expected)


def _ffn(rows: int, columns: bool) -> dict[str, Tensor]:
    inputs = {"x": torch.randn(rows, 40), "w_in": torch.randn(50, 40), "w_out": torch.randn(30, 50)}
    inputs["x"][2, 1] = INF
    return {name: t.t().contiguous().t() for name, t in inputs.items()} if columns else inputs


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("rows", [5, 70])
def test_an_infinite_input_of_ffn(rows: int, columns: bool) -> None:
    inputs, names = _ffn(rows, columns), ("x", "w_in", "w_out")
    found, expected = (_run(tw.ffn, inputs, names, b, activation="relu") for b in ("cuda", "reference"))
    _same(found[0], expected[0], scale=10.0)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=4e-6, atol=4e-5)  # dx has no infinity in it
    for gradient, wanted in zip(found[2:], expected[2:], strict=True):
        _same(gradient, wanted, scale=40.0)


@pytest.mark.parametrize("rows", [5, 70])
def test_an_infinity_times_0_or_less_another_is_nan(rows: int) -> None:
    inputs = _ffn(rows, False)
    inputs["w_in"][3, 1] = 0.0
    inputs["x"][4, 2], inputs["x"][4, 3] = INF, -INF
    inputs["w_out"][7, 3] = INF
    found, expected = (_run(tw.ffn, inputs, (), b, activation="silu")[0] for b in ("cuda", "reference"))
    _same(found, expected, scale=10.0)
