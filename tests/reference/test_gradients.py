"""The reference is differentiable twice, in float64, with every feature; and it is what torch computes where torch
can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import tilewright as tw


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def qkv(heads: int = 2, heads_kv: int = 1, seqlen_q: int = 3, seqlen_k: int = 4) -> list[torch.Tensor]:
    return [leaf(1, heads, seqlen_q, 3), leaf(1, heads_kv, seqlen_k, 3), leaf(1, heads_kv, seqlen_k, 2)]


def seeded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same dropout mask at every evaluation."""

    def run(*args: torch.Tensor) -> Any:
        torch.manual_seed(3)
        return function(*args)

    return run


CU_Q, CU_K = torch.tensor([0, 2, 2, 3], dtype=torch.int32), torch.tensor([0, 1, 3, 4], dtype=torch.int32)
PARTIAL = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])

CASES: dict[str, tuple[Callable[..., Any], list[torch.Tensor]]] = {
    "attention": (lambda q, k, v: tw.attention(q, k, v, causal="bottom_right", return_lse=True), qkv()),
    "attention, empty rows": (lambda q, k, v: tw.attention(q, k, v, mask=PARTIAL, window=(1, 1)), qkv()),
    "attention, features": (
        lambda q, k, v, m, s: tw.attention(
            q,
            k,
            v,
            mask=m,
            sinks=s,
            softcap=2.0,
            alibi_slopes=torch.tensor([0.5, 0.25]),
            dropout_p=0.3,
            return_lse=True,
        ),
        [*qkv(), leaf(2, 1, 4), leaf(2)],
    ),
    "varlen_attention": (
        lambda q, k, v, s: tw.varlen_attention(q, k, v, CU_Q, CU_K, 2, 2, sinks=s, causal="top_left", dropout_p=0.3),
        [leaf(3, 2, 3), leaf(4, 1, 3), leaf(4, 1, 2), leaf(2)],
    ),
    "softmax": (lambda x, m: tw.softmax(x, mask=m, scale=0.7, causal="top_left"), [leaf(2, 3, 4), leaf(3, 1)]),
    "softmax, dim": (lambda x: tw.softmax(x, 0), [leaf(3, 2)]),
    "log_softmax": (lambda x, m: tw.log_softmax(x, mask=m).clamp(min=-50), [leaf(2, 3, 4), leaf(4)]),
    **{
        f"ffn, {activation}": (
            lambda x, w, o, b, c, activation=activation: tw.ffn(  # type: ignore[misc]
                x, w, o, b_in=b, b_out=c, residual=x, activation=activation, dropout_p=0.2
            ),
            [leaf(2, 3), leaf(8 if gated else 4, 3), leaf(3, 4), leaf(8 if gated else 4), leaf(3)],
        )
        for activation, gated in (
            ("relu2", False),
            ("gelu", False),
            ("gelu_tanh", False),
            ("silu", False),
            ("geglu", True),
            ("swiglu", True),
        )
    },
}


@pytest.mark.parametrize("case", CASES)
def test_first_and_second_derivatives(case: str) -> None:
    function, inputs = CASES[case]
    with tw.use_backend("reference"):
        assert gradcheck(seeded(function), inputs)
        assert gradgradcheck(seeded(function), inputs)


@pytest.mark.parametrize("backend", ["reference", None])
def test_second_derivatives_are_reachable_by_create_graph(backend: str | None) -> None:
    """A gradient penalty, through whatever backend runs the forward."""
    x, w = leaf(4, 5), torch.randn(4, 5, dtype=torch.float64)

    def penalty(softmax: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        (g,) = torch.autograd.grad((softmax(x) * w).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(g.square().sum(), x)
        return second

    torch.testing.assert_close(
        penalty(lambda t: tw.softmax(t, backend=backend)), penalty(lambda t: torch.softmax(t, -1))
    )


def test_agrees_with_torch_on_plain_calls() -> None:
    q, k, v = (torch.randn(2, 3, 6, 8, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(3, 6, 6, dtype=torch.float64)
    with tw.use_backend("reference"):
        torch.testing.assert_close(tw.attention(q, k, v, mask=bias), F.scaled_dot_product_attention(q, k, v, bias))
        torch.testing.assert_close(
            tw.attention(q, k, v, causal="top_left"), F.scaled_dot_product_attention(q, k, v, is_causal=True)
        )
        torch.testing.assert_close(tw.softmax(q, 1), torch.softmax(q, 1))
        torch.testing.assert_close(tw.log_softmax(q, 2), torch.log_softmax(q, 2))
        w, o = torch.randn(5, 8, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
        torch.testing.assert_close(tw.ffn(q, w, o, activation="gelu"), F.linear(F.gelu(F.linear(q, w)), o))


def test_rows_with_nothing_to_attend_to() -> None:
    q, k, v = qkv()
    none = torch.zeros(3, 4, dtype=torch.bool)
    with tw.use_backend("reference"):
        out, lse = tw.attention(q, k, v, mask=none, return_lse=True)
        assert torch.equal(out, torch.zeros_like(out))
        assert torch.equal(lse, torch.full_like(lse, -torch.inf))
        assert all(torch.equal(g, torch.zeros_like(g)) for g in torch.autograd.grad(out.sum(), (q, k, v)))
        _, lse = tw.attention(q, k, v, mask=none, sinks=torch.tensor([0.5, -2.0]), return_lse=True)
        torch.testing.assert_close(lse[0, :, 0], torch.tensor([0.5, -2.0], dtype=torch.float64))
        uniform = tw.attention(q, k, v, mask=torch.full((3, 4), torch.finfo(torch.float64).min, dtype=torch.float64))
        torch.testing.assert_close(uniform, v.mean(2, keepdim=True).expand(1, 2, 3, 2).contiguous())
