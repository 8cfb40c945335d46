"""Calls with more blocks than a dimension of a grid may have: past 65,535 they launch, past 2^31 - 1 they are refused.

In the emulator only some blocks of a launch run, the first and the last among them, and what others should have written
is no fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tilewright as tw
from tilewright.backends import cuda
from tilewright.verify.traps import poisoned

#: Batch entries x heads: more than the 65,535 blocks that a grid has along y and z.
BATCH, HEADS = 35_000, 2

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="`make gpu` launches them there")


@pytest.fixture(autouse=True)
def _some_blocks(_emulated: None) -> None:
    cuda.kernels().watch(history=False, blocks=40)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16)


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.requires_grad_() for t in tensors]


def _attention(seqlen_q: int) -> tuple[Tensor, ...]:
    q, k, v = _normal(BATCH, HEADS, seqlen_q, 8), _normal(BATCH, HEADS, 2, 8), _normal(BATCH, HEADS, 2, 8)
    inputs = _leaves(q, k, v, torch.randn(BATCH, HEADS, seqlen_q, 2))
    out = tw.attention(q, k, v, mask=inputs[3], backend="cuda")
    return out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))


def _varlen() -> tuple[Tensor, ...]:
    q, k, v = _leaves(*(_normal(BATCH, HEADS, 8) for _ in "qkv"))
    bounds = torch.arange(BATCH + 1, dtype=torch.int32)
    out = tw.varlen_attention(q, k, v, bounds, bounds, 1, 1, backend="cuda")
    return out.detach(), *torch.autograd.grad(out, [q, k, v], torch.ones_like(out))


def _cache(seqlen_new: int, batch: int, heads: int) -> tuple[Tensor, ...]:
    q, new = _normal(batch, heads, 1, 8), [_normal(batch, heads, seqlen_new, 8) for _ in "kv"]
    caches = [torch.full((batch, heads, seqlen_new + 1, 8), float("nan"), dtype=torch.bfloat16) for _ in "kv"]
    tw.kvcache_attention(q, *caches, k=new[0], v=new[1], cache_seqlens=0, num_splits=2, backend="cuda")
    for cache, given in zip(caches, new, strict=True):
        written = ~cache[:, :, :-1].isnan()
        assert torch.equal(cache[:, :, :-1][written], given[written])
    return tuple(cache[:, :, :-1] for cache in caches)


def _ffn() -> tuple[Tensor, ...]:
    rows = 64 * 65_600  # a block has 64
    (x,) = _leaves(_normal(rows, 1))
    out = tw.ffn(x, _normal(4, 1), _normal(1, 4), backend="cuda")
    return out.detach(), *torch.autograd.grad(out, [x], torch.ones_like(out))


def _softmax(*shape: int, dim: int = -1) -> tuple[Tensor, ...]:
    (x,) = _leaves(_normal(*shape))
    y = tw.softmax(x, dim, backend="cuda")
    return y.detach(), *torch.autograd.grad(y, [x], torch.ones_like(y))


CALLS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "attention of tiles": lambda: _attention(33),
    "decode and its backward": lambda: _attention(1),
    "packed": _varlen,
    "planes of a cache": lambda: _cache(1, BATCH, HEADS),
    "new positions": lambda: _cache(70_000, 1, 2),
    "rows of ffn": _ffn,
    "rows of softmax": lambda: _softmax(128 * 65_600, 4),
    "rows of softmax, a block each": lambda: _softmax(65_600, 40),
    "columns of softmax": lambda: _softmax(3, 32 * 65_600, dim=0),
}


@pytest.mark.parametrize("name", CALLS)
def test_more_than_65535_launch(name: str) -> None:
    with poisoned():
        results = CALLS[name]()
    assert not [t.shape for t in results if t.reshape(-1)[-1].isnan()], "the last block did not write its last element"


def test_attention_of_the_last_plane_is_right() -> None:
    with poisoned():
        q, k, v = (_normal(BATCH, HEADS, 3, 8) for _ in "qkv")
        out = tw.attention(q, k, v, backend="cuda")
    written = ~out.isnan().any(-1).any(-1).flatten()
    assert written[-1] and written[0] and 10 < int(written.sum()) < 100
    chosen = [t.flatten(0, 1)[written][None] for t in (q, k, v)]
    expected = tw.attention(*chosen, backend="reference")
    torch.testing.assert_close(out.flatten(0, 1)[written][None], expected, atol=1e-2, rtol=1e-2)


#: The tensors of a call that is refused are at no address.
_AT = (64, (1, 1, 1, 1))
_ATTENTION: dict[str, Any] = {
    "batch": 1, "heads": 1, "heads_kv": 1, "seqlen_q": 1, "seqlen_k": 1, "head_dim": 8, "head_dim_v": 8, "q": _AT,
}  # fmt: skip
_FFN: dict[str, Any] = {"rows": 64, "in_features": 8, "hidden": 8, "out_features": 8, "x": _AT, "pre": 64}
TOO_LONG, TOO_MANY = "its sizes are past what", "more blocks than a grid may have"
#: Calls that no kernel can count, some only in their last launch. In 32 bits each wraps to few blocks, or none.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "planes": ("attention_forward", {"batch": 2**16, "heads": 2**16}, TOO_LONG),
    "queries": ("attention_forward", {"seqlen_q": 2**32 + 1}, TOO_LONG),
    "keys": ("attention_forward", {"seqlen_k": 2**32 + 1}, TOO_LONG),
    "queries of a group": ("attention_forward", {"heads": 2**12, "seqlen_q": 2**20}, TOO_LONG),
    "blocks of queries": ("attention_forward", {"batch": 2**26, "seqlen_q": 2**12}, TOO_MANY),
    "blocks after an append": (
        "kvcache_attention",
        {"batch": 2**20, "heads": 2**6, "seqlen_q": 2**12, "k_new": _AT, "v_new": _AT, "seqlen_new": 1},
        TOO_MANY,
    ),
    "blocks of keys": ("attention_backward", {"batch": 2**26, "seqlen_k": 2**12, "dk": _AT}, TOO_MANY),
    "blocks of a mask": (
        "attention_backward", {"batch": 2**12, "seqlen_q": 2**16, "seqlen_k": 2**16, "dmask": _AT}, TOO_MANY
    ),
    "rows of softmax": ("softmax_forward", {"row_dims": 1, "row_shape": (2**39,), "n": 1}, TOO_MANY),
    "columns of few rows": ("ffn_forward", {"rows": 1, "out_features": 2**36}, TOO_MANY),
    "tiles of ffn": ("ffn_forward", {"rows": 2**20, "out_features": 2**26}, TOO_MANY),
    "columns of a gradient": ("ffn_backward", {"in_features": 2**36, "dx": _AT}, TOO_MANY),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_counted_is_refused_in_words_before_anything_runs(name: str) -> None:
    kernel, fields, words = REFUSED[name]
    kinds = {"attention": ("AttentionParams", _ATTENTION), "softmax": ("SoftmaxParams", {}), "ffn": ("FfnParams", _FFN)}
    kind, others = next(found for op, found in kinds.items() if op in kernel)
    params = getattr(cuda.kernels(), kind)()
    for field, value in (others | fields).items():
        setattr(params, field, value)
    with pytest.raises(RuntimeError, match=rf"^{kernel}: .*{words}.*; {kind}\("):
        getattr(cuda.kernels(), kernel)(params)
    assert cuda.kernels().last_error() == 0
