"""torch.jit.trace records one operator, which serves other sizes than it was traced with, and gradients."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tilewright as tw
from tilewright.catalog import OPS

# torch itself says that its tracer will go.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")

Q, X, W, W_OUT = torch.randn(1, 2, 5, 8), torch.randn(2, 5, 8), torch.randn(16, 8), torch.randn(8, 16)
BOUNDS = torch.tensor([0, 2, 5], dtype=torch.int32)
PACKED = torch.randn(5, 2, 8)


def _caches(q: Tensor, k: Tensor, v: Tensor, new: Tensor) -> Tensor:
    return tw.kvcache_attention(q, k.clone(), v.clone(), k=new, v=new, cache_seqlens=3)  # type: ignore[return-value]


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "attention": (lambda q, k, v: tw.attention(q, k, v, causal="top_left"), (Q, Q + 1, Q - 1)),
    "attention bshd": (lambda q, k, v: tw.attention(q, k, v, layout="bshd", window=(1, 0)), (Q, Q + 1, Q - 1)),
    "varlen_attention": (lambda q, c: tw.varlen_attention(q, q, q, c, c, 3, 3), (PACKED, BOUNDS)),
    "kvcache_attention": (_caches, (Q[:, :, :1], Q, Q + 1, Q[:, :, :1])),
    "softmax": (lambda x: tw.softmax(x, scale=0.5), (X,)),
    "log_softmax": (lambda x: tw.log_softmax(x @ x.mT, causal="top_left"), (X,)),
    "ffn": (lambda x, w, o: tw.ffn(x, w, o), (X, W, W_OUT)),
    "sdpa": (lambda q, k, v: tw.scaled_dot_product_attention(q, k, v, is_causal=True), (Q, Q + 1, Q - 1)),
}


def _saved_and_loaded(traced: Any) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def test_every_op_has_a_program_here() -> None:
    assert set(OPS) <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_traced_programs_serve_other_sizes(name: str) -> None:
    function, inputs = PROGRAMS[name]
    traced = torch.jit.trace(function, inputs)
    operators = [n.kind() for n in traced.graph.nodes() if n.kind().startswith("tilewright::")]
    assert len(operators) == 1, f"{name}: one operator is to be recorded, not {operators}"
    loaded = _saved_and_loaded(traced)
    more = inputs if name == "varlen_attention" else [t if t.dim() == 2 else torch.cat((t, t - 1)) for t in inputs]
    for given in (inputs, more):
        torch.testing.assert_close(loaded(*given), function(*given))


@pytest.mark.parametrize("name", [n for n in PROGRAMS if n != "kvcache_attention"])
def test_gradients_after_a_trace_without_any(name: str) -> None:
    function, inputs = PROGRAMS[name]
    traced = torch.jit.trace(function, inputs)
    found = []
    for program in (traced, function):
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
        program(*leaves).square().sum().backward()
        found.append([t.grad for t in leaves if t.requires_grad])
    torch.testing.assert_close(*found)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Softmax": (lambda: tw.nn.Softmax(-1), (3, 7)),
    "LogSoftmax": (lambda: tw.nn.LogSoftmax(-1), (3, 7)),
    "MultiheadAttention": (lambda: _SelfAttention(), (2, 5, 16)),
    "FeedForward": (lambda: tw.nn.FeedForward(16, 32), (2, 5, 16)),
}


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = tw.nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODULES)
def test_traced_modules(name: str) -> None:
    make, size = MODULES[name]
    module, x = make().eval(), torch.randn(size)
    traced = _saved_and_loaded(torch.jit.trace(module, (x,)))
    torch.testing.assert_close(traced(x), module(x))
    longer = torch.cat((x, x + 1))
    torch.testing.assert_close(traced(longer), module(longer))


def test_a_traced_block_in_replace_sdpa() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 16)
    with tw.replace_sdpa():
        traced = torch.jit.trace(layer, (x,))
    assert "tilewright::attention" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), layer(x))
