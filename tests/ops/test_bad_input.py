"""Wrong arguments: one clear exception each, naming the argument, before any kernel runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tilewright as tw

B, H, S, D = 2, 4, 5, 8


def q(*shape: int, **kwargs: Any) -> torch.Tensor:
    return torch.randn(*(shape or (B, H, S, D)), **kwargs)


def attention(**changes: Any) -> Callable[[], Any]:
    arguments: dict[str, Any] = {"q": q(), "k": q(), "v": q()} | changes
    return lambda: tw.attention(**arguments)


def varlen(**changes: Any) -> Callable[[], Any]:
    cu = torch.tensor([0, 2, 6], dtype=torch.int32)
    arguments: dict[str, Any] = {
        "q": q(6, H, D),
        "k": q(6, H, D),
        "v": q(6, H, D),
        "cu_seqlens_q": cu,
        "cu_seqlens_k": cu.clone(),
        "max_seqlen_q": 4,
        "max_seqlen_k": 4,
    } | changes
    return lambda: tw.varlen_attention(**arguments)


def kvcache(**changes: Any) -> Callable[[], Any]:
    lengths = torch.tensor([3, 4], dtype=torch.int32)
    arguments: dict[str, Any] = {"q": q(B, H, 1, D), "k_cache": q(), "v_cache": q(), "cache_seqlens": lengths} | changes
    return lambda: tw.kvcache_attention(**arguments)


def paged(table: list[list[int]], **changes: Any) -> Callable[[], Any]:
    pages = torch.tensor(table, dtype=torch.int32)
    return kvcache(**({"k_cache": q(6, H, 2, D), "v_cache": q(6, H, 2, D), "block_table": pages} | changes))


def softmax(**changes: Any) -> Callable[[], Any]:
    return lambda: tw.softmax(**({"x": q()} | changes))


def ffn(**changes: Any) -> Callable[[], Any]:
    return lambda: tw.ffn(**({"x": q(3, 8), "w_in": q(16, 8), "w_out": q(8, 16)} | changes))


NAN, INF = float("nan"), float("inf")

CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # attention: tensors
    "q not a tensor": (attention(q=[1.0]), TypeError, "q must be a torch.Tensor, got list"),
    "q integer": (attention(q=torch.ones(B, H, S, D, dtype=torch.int64)), TypeError, "q has dtype torch.int64"),
    "q sparse": (attention(q=q().to_sparse()), TypeError, "q has layout"),
    "q rank": (attention(q=q(H, S, D)), ValueError, "q has shape .* 4 dimensions"),
    "k rank": (attention(k=q(H, S, D)), ValueError, "k has shape .* 4 dimensions"),
    "k dtype": (attention(k=q().half()), TypeError, "k has dtype torch.float16 but q has torch.float32"),
    "v dtype": (attention(v=q().double()), TypeError, "v has dtype"),
    "k device": (attention(k=q(device="meta")), ValueError, "k is on meta but q is on cpu"),
    "k batch": (attention(k=q(3, H, S, D)), ValueError, "k has batch size 3"),
    "v length": (attention(v=q(B, H, 6, D)), ValueError, "v has 6 positions"),
    "k head dim": (attention(k=q(B, H, S, 7)), ValueError, "k has head dim 7"),
    "heads": (
        attention(k=q(B, 3, S, D), v=q(B, 3, S, D)),
        ValueError,
        "q has 4 heads, which is not a multiple of the 3",
    ),
    "v heads": (attention(v=q(B, 2, S, D)), ValueError, "v has 2 heads"),
    "no kv heads": (attention(k=q(B, 0, S, D), v=q(B, 0, S, D)), ValueError, "q has 4 heads"),
    "head dim 257": (
        attention(q=q(1, 1, 2, 257), k=q(1, 1, 2, 257), v=q(1, 1, 2, 8)),
        ValueError,
        "q has head dim 257",
    ),
    "head dim 0": (attention(q=q(1, 1, 2, 0), k=q(1, 1, 2, 0), v=q(1, 1, 2, 8)), ValueError, "q has head dim 0"),
    "v head dim": (attention(v=q(B, H, S, 300)), ValueError, "v has head dim 300"),
    # attention: options
    "layout": (attention(layout="sbhd"), ValueError, "layout='sbhd'"),
    "causal": (attention(causal=True), ValueError, "causal=True must be None, 'top_left'"),
    "int mask": (attention(mask=torch.ones(S, S, dtype=torch.int32)), TypeError, "mask has dtype torch.int32"),
    "mask dtype": (attention(mask=q(S, S).half()), TypeError, "mask has dtype torch.float16"),
    "mask shape": (attention(mask=q(S, 6)), ValueError, r"mask of shape \(5, 6\) does not broadcast"),
    "mask rank": (attention(mask=q(1, B, H, S, S)), ValueError, "does not broadcast"),
    "mask list": (attention(mask=[[True]]), TypeError, "mask must be a torch.Tensor"),
    "mask device": (attention(mask=q(S, S, device="meta")), ValueError, "mask is on meta"),
    "window int": (attention(window=3), TypeError, "window=3"),
    "window float": (attention(window=(1.5, 0)), TypeError, "window"),
    "window negative": (attention(window=(-1, 0)), ValueError, "use None for no limit"),
    "scale nan": (attention(scale=NAN), ValueError, "scale=nan must be finite"),
    "scale string": (attention(scale="1"), TypeError, "scale must be a number"),
    "softcap negative": (attention(softcap=-1.0), ValueError, "softcap=-1.0"),
    "softcap inf": (attention(softcap=INF), ValueError, "softcap=inf must be finite"),
    "dropout 1.5": (attention(dropout_p=1.5), ValueError, "dropout_p=1.5"),
    "dropout negative": (attention(dropout_p=-0.1), ValueError, "dropout_p=-0.1"),
    "alibi shape": (attention(alibi_slopes=q(3)), ValueError, "alibi_slopes"),
    "alibi gradient": (
        attention(alibi_slopes=q(H, requires_grad=True)),
        ValueError,
        "alibi_slopes requires a gradient",
    ),
    "sinks shape": (attention(sinks=q(B, H)), ValueError, "sinks"),
    "sinks dtype": (attention(sinks=q(H).half()), TypeError, "sinks has dtype"),
    "backend": (attention(backend="gpu"), ValueError, "backend='gpu' is not a backend"),
    # varlen_attention
    "cu_seqlens int64": (varlen(cu_seqlens_q=torch.tensor([0, 2, 6])), TypeError, "cu_seqlens_q has dtype torch.int64"),
    "cu_seqlens list": (varlen(cu_seqlens_q=[0, 2, 6]), TypeError, "cu_seqlens_q must be an int32"),
    "cu_seqlens end": (
        varlen(cu_seqlens_q=torch.tensor([0, 2, 5], dtype=torch.int32)),
        ValueError,
        "cu_seqlens_q runs from 0 to 5",
    ),
    "cu_seqlens start": (
        varlen(cu_seqlens_k=torch.tensor([1, 2, 6], dtype=torch.int32)),
        ValueError,
        "cu_seqlens_k runs from 1",
    ),
    "cu_seqlens falls": (
        varlen(
            cu_seqlens_q=torch.tensor([0, 6, 2, 6], dtype=torch.int32),
            cu_seqlens_k=torch.tensor([0, 2, 2, 6], dtype=torch.int32),
            max_seqlen_q=6,
        ),
        ValueError,
        "cu_seqlens_q falls at position 1",
    ),
    "cu_seqlens count": (
        varlen(cu_seqlens_k=torch.tensor([0, 6], dtype=torch.int32)),
        ValueError,
        "cu_seqlens_k of shape",
    ),
    "max too small": (
        varlen(max_seqlen_k=3),
        ValueError,
        "max_seqlen_k=3 but cu_seqlens_k holds a sequence of length 4",
    ),
    "max negative": (varlen(max_seqlen_q=-1), ValueError, "max_seqlen_q=-1"),
    "max float": (varlen(max_seqlen_q=4.0), TypeError, "max_seqlen_q must be an int"),
    # kvcache_attention
    "lengths past capacity": (
        kvcache(cache_seqlens=torch.tensor([3, 6], dtype=torch.int32)),
        ValueError,
        r"cache_seqlens\[1\]=6",
    ),
    "lengths negative": (kvcache(cache_seqlens=-1), ValueError, r"cache_seqlens\[0\]=-1"),
    "append past capacity": (kvcache(k=q(B, H, 3, D), v=q(B, H, 3, D)), ValueError, "3 new positions does not fit"),
    "append without lengths": (
        kvcache(k=q(B, H, 1, D), v=q(B, H, 1, D), cache_seqlens=None),
        ValueError,
        "cache_seqlens is None",
    ),
    "k without v": (kvcache(k=q(B, H, 1, D)), ValueError, "v is None but the other is not"),
    "new k shape": (kvcache(k=q(B, 2, 1, D), v=q(B, H, 1, D)), ValueError, "k has shape"),
    "cache dims": (kvcache(v_cache=q(B, H, 6, D)), ValueError, "v_cache of shape"),
    "cache gradient": (kvcache(q=q(B, H, 1, D, requires_grad=True)), ValueError, "q requires a gradient"),
    "cache strided": (kvcache(k_cache=q(B, H, D, S).transpose(2, 3)), ValueError, "k_cache has strides"),
    "page too large": (paged([[0, 1], [2, 6]]), ValueError, r"block_table\[1\] names page 6, out of range"),
    "page negative": (paged([[0, -1], [2, 3]]), ValueError, r"block_table\[0\] names page -1"),
    "pages too few": (paged([[0], [1]]), ValueError, "does not fit"),
    "pages of nothing": (
        paged([[0], [1]], k_cache=q(6, H, 0, D), v_cache=q(6, H, 0, D)),
        ValueError,
        "pages of size 0",
    ),
    "table dtype": (kvcache(block_table=torch.zeros(B, 2)), TypeError, "block_table must be an int32"),
    "splits": (kvcache(num_splits=-1), ValueError, "num_splits=-1"),
    # softmax
    "softmax dim": (softmax(dim=4), ValueError, "dim=4 is out of range"),
    "softmax dim type": (softmax(dim=1.0), TypeError, "dim must be an int"),
    "softmax rank": (softmax(x=q(*[1] * 9)), ValueError, "x has 9 dimensions"),
    "softmax integer": (softmax(x=torch.ones(3, dtype=torch.int32)), TypeError, "x has dtype torch.int32"),
    "softmax mask": (softmax(mask=q(7)), ValueError, "mask of shape"),
    "softmax int mask": (softmax(mask=torch.ones(D, dtype=torch.uint8)), TypeError, "mask has dtype torch.uint8"),
    "softmax causal dim": (
        softmax(causal="top_left", dim=1),
        ValueError,
        "needs x of two or more dimensions and dim=-1",
    ),
    "softmax scale": (softmax(scale=NAN), ValueError, "scale=nan"),
    # ffn
    "ffn w_in": (ffn(w_in=q(16, 9)), ValueError, "w_in has shape .* but x has 8 features"),
    "ffn hidden": (ffn(w_in=q(15, 8)), ValueError, "w_in must have F = 16 rows"),
    "ffn gated": (ffn(activation="swiglu"), ValueError, "2F = 32 rows"),
    "ffn activation": (ffn(activation="tanh"), ValueError, "activation='tanh'"),
    "ffn b_in": (ffn(b_in=q(8)), ValueError, r"b_in has shape \(8,\); it must be \(16,\)"),
    "ffn b_out": (ffn(b_out=q(8, 1)), ValueError, "b_out has shape"),
    "ffn residual": (ffn(residual=q(4, 8)), ValueError, "residual has shape"),
    "ffn dtype": (ffn(w_out=q(8, 16).half()), TypeError, "w_out has dtype torch.float16 but x has"),
    "ffn rank": (ffn(w_in=q(16)), ValueError, "w_in has shape"),
    "ffn scalar": (ffn(x=torch.tensor(1.0)), ValueError, "x has no dimensions"),
    "ffn dropout": (ffn(dropout_p=2), ValueError, "dropout_p=2"),
    # the rest
    "use_backend": (lambda: tw.use_backend("gpu").__enter__(), ValueError, "name='gpu'"),
    "explain op": (lambda: tw.explain("conv"), ValueError, "op_name='conv'"),
    "explain argument": (lambda: tw.explain("softmax", q(), dim=9), ValueError, "dim=9"),
}


@pytest.mark.parametrize("case", CASES)
def test_raises_one_clear_exception(case: str) -> None:
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_environment_variable_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.config._from_environment", "gpu")  # what the variable held at import
    with pytest.raises(ValueError, match="TILEWRIGHT_BACKEND='gpu'"):
        tw.softmax(q())
