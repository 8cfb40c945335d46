"""Ops on compiled kernels: from a call to the plain struct that crosses to them (csrc/common/params.h).

The struct is the same for every compiled module, so this is as well: a backend adds how a kernel is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops._checks import accumulator, unit_last_stride
from ..ops._features import broadcast_strides
from ..ops.attention import OP as ATTENTION_OP
from ..ops.attention import AttentionCall
from ..ops.ffn import ACTIVATIONS, FfnCall
from ..ops.ffn import OP as FFN_OP
from ..ops.kvcache_attention import MAX_SPLITS, KvcacheAttentionCall, capacity
from ..ops.kvcache_attention import OP as KVCACHE_OP
from ..ops.softmax import OP as SOFTMAX_OP
from ..ops.softmax import SoftmaxCall, causal_shift
from ..ops.varlen_attention import OP as VARLEN_OP
from ..ops.varlen_attention import VarlenAttentionCall
from ..registry import Implementation

# The numbers of csrc/common/params.h.
_DTYPE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.bool: 4}
_CAUSAL = {None: 0, "top_left": 1, "bottom_right": 2}
_ACTIVATION = {name: i for i, name in enumerate(ACTIVATIONS)}


@dataclass(frozen=True)
class Kernels:
    """module(): the compiled module. run(name, params, tensor): its kernel of that name, where ``tensor`` is."""

    module: Callable[[], Any]
    run: Callable[[str, Any, Tensor], None]


def _view(t: Tensor) -> tuple[int, tuple[int, ...]]:
    return t.data_ptr(), t.stride()


def _broadcast_view(t: Tensor) -> tuple[int, tuple[int, ...]]:
    return t.data_ptr(), broadcast_strides(t)


def _set_features(p: Any, call: Any) -> None:
    q = call.q
    p.dtype = _DTYPE[q.dtype]
    p.num_threads = torch.get_num_threads()
    p.scale = call.scale
    if call.mask is not None:
        p.mask, p.mask_dtype = _broadcast_view(call.mask), _DTYPE[call.mask.dtype]
    if call.alibi_slopes is not None:
        p.alibi_slopes = _view(call.alibi_slopes)
    if call.sinks is not None:
        p.sinks, p.sinks_dtype = _view(call.sinks), _DTYPE[call.sinks.dtype]
    if call.causal is not None:
        p.causal = _CAUSAL[call.causal]
    if call.window_left >= 0:
        p.window_left = call.window_left
    if call.window_right >= 0:
        p.window_right = call.window_right
    if call.softcap > 0.0:
        p.softcap = call.softcap


def _set_dropout(p: Any, call: Any) -> None:
    if call.rng is not None:
        p.rng, p.dropout_p = call.rng.data_ptr(), call.dropout_p


def _packed(t: Tensor) -> tuple[int, tuple[int, ...]]:
    """(total, H, D) addressed as (B, H, S, D): no batch stride."""
    rows, heads, last = t.stride()
    return t.data_ptr(), (0, heads, rows, last)


def _attention_params(kernels: Kernels, call: AttentionCall, outputs: tuple[Tensor, ...]) -> Any:
    p = kernels.module().AttentionParams()
    q, k, v = call.q, call.k, call.v
    _set_features(p, call)
    _set_dropout(p, call)
    p.q, p.k, p.v, p.out, p.lse = _view(q), _view(k), _view(v), _view(outputs[0]), _view(outputs[1])
    if call.keep_stats:
        p.row_stats = _view(outputs[2])
    p.batch, p.heads, p.seqlen_q, p.head_dim = q.shape
    _, p.heads_kv, p.seqlen_k, p.head_dim_v = v.shape
    return p


def _attention_forward(kernels: Kernels, call: AttentionCall) -> tuple[Tensor, ...]:
    outputs = ATTENTION_OP.allocate(call)
    kernels.run("attention_forward", _attention_params(kernels, call, outputs), call.q)
    return outputs


def _varlen_params(kernels: Kernels, call: VarlenAttentionCall, outputs: tuple[Tensor, ...]) -> Any:
    p = kernels.module().AttentionParams()
    q, k, v, (out, lse, row_stats) = call.q, call.k, call.v, outputs
    _set_features(p, call)
    _set_dropout(p, call)
    p.q, p.k, p.v, p.out = _packed(q), _packed(k), _packed(v), _packed(out)
    p.lse = (lse.data_ptr(), (0, *lse.stride()))
    if call.keep_stats:
        p.row_stats = (row_stats.data_ptr(), (0, *row_stats.stride()))
    p.cu_seqlens_q, p.cu_seqlens_k = call.cu_seqlens_q.data_ptr(), call.cu_seqlens_k.data_ptr()
    p.batch, p.seqlen_q, p.seqlen_k = call.cu_seqlens_q.shape[0] - 1, call.max_seqlen_q, call.max_seqlen_k
    p.total_q, p.heads, p.head_dim = q.shape
    p.total_k, p.heads_kv, p.head_dim_v = v.shape
    return p


def _varlen_forward(kernels: Kernels, call: VarlenAttentionCall) -> tuple[Tensor, ...]:
    outputs = VARLEN_OP.allocate(call)
    kernels.run("attention_forward", _varlen_params(kernels, call, outputs), call.q)
    return outputs


def _kvcache_forward(kernels: Kernels, call: KvcacheAttentionCall) -> tuple[Tensor, ...]:
    outputs = KVCACHE_OP.allocate(call)
    p = kernels.module().AttentionParams()
    q, v = call.q, call.v_cache
    _set_features(p, call)
    p.q, p.k, p.v, p.out, p.lse = _view(q), _view(call.k_cache), _view(v), _view(outputs[0]), _view(outputs[1])
    p.batch, p.heads, p.seqlen_q, p.head_dim = q.shape
    _, p.heads_kv, p.page_size, p.head_dim_v = v.shape
    p.num_pages, p.seqlen_k, p.num_splits = v.shape[0], capacity(call), min(call.num_splits, MAX_SPLITS)
    p.seqlens_k = call.cache_seqlens.data_ptr()
    if call.k is not None and call.v is not None:
        p.k_new, p.v_new, p.seqlen_new = _view(call.k), _view(call.v), call.k.shape[2]
    if call.block_table is not None:
        p.block_table, p.block_table_stride = call.block_table.data_ptr(), call.block_table.stride(0)
    kernels.run("kvcache_attention", p, q)
    return outputs


def _run_attention_backward(
    kernels: Kernels,
    op: Any,
    params: Any,
    view: Any,
    call: Any,
    outputs: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    dout, dlse = grads[0], grads[1] if len(grads) > 1 else None
    dout = torch.zeros_like(outputs[0]) if dout is None else unit_last_stride(dout)
    p = params(kernels, call, outputs)
    p.deterministic = call.deterministic
    p.dout = view(dout)
    if dlse is not None:
        p.dlse = (dlse.data_ptr(), dlse.stride() if dlse.dim() == 3 else (0, *dlse.stride()))
    dq, dk, dv = (op.gradient_like(call, n) if want else None for n, want in zip(("q", "k", "v"), wanted, strict=False))
    p.dq, p.dk, p.dv = (None if t is None else view(t) for t in (dq, dk, dv))
    # These two are sums over many tiles, so they are accumulated wide and rounded once.
    wide = accumulator(call.q.dtype)
    dmask = torch.zeros(call.mask.shape, dtype=wide, device=call.q.device) if wanted[3] else None
    dsinks = torch.zeros(call.sinks.shape, dtype=wide, device=call.q.device) if wanted[4] else None
    if dmask is not None:
        p.dmask = _broadcast_view(dmask)
    if dsinks is not None:
        p.dsinks = _view(dsinks)
    kernels.run("attention_backward", p, call.q)
    return (
        dq,
        dk,
        dv,
        None if dmask is None else dmask.to(call.mask.dtype),
        None if dsinks is None else dsinks.to(call.sinks.dtype),
    )


def _attention_backward(
    kernels: Kernels, call: AttentionCall, outputs: Any, grads: Any, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    return _run_attention_backward(kernels, ATTENTION_OP, _attention_params, _view, call, outputs, grads, wanted)


def _varlen_backward(
    kernels: Kernels, call: VarlenAttentionCall, outputs: Any, grads: Any, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    return _run_attention_backward(kernels, VARLEN_OP, _varlen_params, _packed, call, outputs, grads, wanted)


def _collapse(shape: list[int], strides: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Merge row dimensions that every tensor steps through evenly, so that the kernel's row loop is short."""
    out_shape: list[int] = []
    out: list[list[int]] = [[] for _ in strides]
    for d, n in enumerate(shape):
        if n == 1:
            continue
        if out_shape and all(o[-1] == s[d] * n for o, s in zip(out, strides, strict=True)):
            out_shape[-1] *= n
            for o, s in zip(out, strides, strict=True):
                o[-1] = s[d]
        else:
            out_shape.append(n)
            for o, s in zip(out, strides, strict=True):
                o.append(s[d])
    return out_shape, out


def _softmax_params(
    kernels: Kernels, call: SoftmaxCall, log: bool, x: Tensor, y: Tensor, third: Tensor | None
) -> tuple[Any, list[int]]:
    """Row geometry of x, y and a third tensor (mask or dy); returns the third's row strides."""
    p = kernels.module().SoftmaxParams()
    p.dtype, p.log, p.scale, p.num_threads = _DTYPE[x.dtype], log, call.scale, torch.get_num_threads()
    p.x, p.y = x.data_ptr(), y.data_ptr()
    if x.dim() == 0:
        p.n = 1
        return p, []
    dim = call.dim
    others = (y,) if third is None else (y, third)
    plain = call.mask is None and call.causal is None and dim == x.dim() - 1
    if plain and x.is_contiguous() and all(t.is_contiguous() for t in others):  # the usual call: matrices of rows
        p.n = n = x.shape[-1]
        p.row_dims, p.row_shape, p.x_row_stride, p.y_row_stride = 1, (math.prod(x.shape[:-1]),), (n,), (n,)
        return p, [n]
    rows = [d for d in range(x.dim()) if d != dim]
    shape = [x.shape[d] for d in rows]
    third_stride = () if third is None else broadcast_strides(third)
    strides = [[t[d] for d in rows] for t in (x.stride(), y.stride(), third_stride) if t]
    if call.causal is not None:  # the last row dimension must stay by itself: the kernel reads the row's index from it
        head_shape, head = _collapse(shape[:-1], [s[:-1] for s in strides])
        shape, strides = [*head_shape, shape[-1]], [[*h, s[-1]] for h, s in zip(head, strides, strict=True)]
        p.causal, p.causal_shift = True, causal_shift(call)
    else:
        shape, strides = _collapse(shape, strides)
    p.row_dims, p.row_shape, p.x_row_stride, p.y_row_stride = (
        len(shape),
        tuple(shape),
        tuple(strides[0]),
        tuple(strides[1]),
    )
    p.n, p.x_stride, p.y_stride = x.shape[dim], x.stride(dim), y.stride(dim)
    return p, strides[2] if third is not None else []


def _softmax_forward(kernels: Kernels, call: SoftmaxCall, *, log: bool) -> tuple[Tensor, ...]:
    x, mask, (y,) = call.x, call.mask, SOFTMAX_OP.allocate(call)
    p, mask_strides = _softmax_params(kernels, call, log, x, y, mask)
    if mask is not None:
        p.mask, p.mask_dtype, p.mask_row_stride = mask.data_ptr(), _DTYPE[mask.dtype], tuple(mask_strides)
        p.mask_stride = broadcast_strides(mask)[call.dim] if mask.dim() else 0
    kernels.run("softmax_forward", p, x)
    return (y,)


def _softmax_backward(
    kernels: Kernels,
    call: SoftmaxCall,
    outputs: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    wanted: Sequence[bool],
    *,
    log: bool,
) -> tuple[Tensor | None, ...]:
    y, dy = outputs[0], grads[0]
    assert dy is not None
    scale = call.scale
    if wanted[1]:
        # The mask's gradient is a sum of the unscaled, unrounded gradient of the scores, which the kernel gives as
        # float.
        wide = accumulator(y.dtype)
        y, dy, scale = y.to(wide), dy.to(wide), 1.0
    dx = torch.empty_like(y)
    p, dy_strides = _softmax_params(kernels, call._replace(causal=None, scale=scale), log, dx, y, dy)
    p.dx, p.dy, p.dy_row_stride = p.x, dy.data_ptr(), tuple(dy_strides)
    p.dy_stride = dy.stride(call.dim) if dy.dim() else 1
    kernels.run("softmax_backward", p, y)
    if not wanted[1]:
        return dx, None
    assert call.mask is not None
    dmask = dx.sum_to_size(call.mask.shape).to(call.mask.dtype)
    return (dx * call.scale).to(outputs[0].dtype) if wanted[0] else None, dmask


def _ffn_params(kernels: Kernels, call: FfnCall, pre: Tensor) -> Any:
    p = kernels.module().FfnParams()
    p.dtype, p.activation, p.num_threads = _DTYPE[call.x.dtype], _ACTIVATION[call.activation], torch.get_num_threads()
    p.x, p.w_in, p.w_out = _view(call.x), _view(call.w_in), _view(call.w_out)
    if call.b_in is not None:
        p.b_in = call.b_in.data_ptr()
    if call.b_out is not None:
        p.b_out = call.b_out.data_ptr()
    if pre.numel() > 0:
        p.pre = pre.data_ptr()
    _set_dropout(p, call)
    p.rows, p.in_features = call.x.shape
    p.out_features, p.hidden = call.w_out.shape
    return p


def _ffn_forward(kernels: Kernels, call: FfnCall) -> tuple[Tensor, ...]:
    out, pre = FFN_OP.allocate(call)
    p = _ffn_params(kernels, call, pre)
    p.out = _view(out)
    if call.residual is not None:
        p.residual = _view(call.residual)
    kernels.run("ffn_forward", p, call.x)
    return out, pre


def _ffn_backward(
    kernels: Kernels,
    call: FfnCall,
    outputs: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    dout = grads[0]
    assert dout is not None
    p = _ffn_params(kernels, call, outputs[1])
    p.dout = _view(dout)
    found = [
        FFN_OP.gradient_like(call, n) if want else None for n, want in zip(FFN_OP.differentiable, wanted, strict=True)
    ]
    dx, dw_in, dw_out, db_in, db_out = found
    p.dx, p.dw_in, p.dw_out = (None if t is None else _view(t) for t in (dx, dw_in, dw_out))
    p.db_in, p.db_out = (0 if t is None else t.data_ptr() for t in (db_in, db_out))
    kernels.run("ffn_backward", p, call.x)
    return tuple(found)


def implementations(kernels: Kernels, unsupported: Callable[[Any], str | None]) -> dict[str, Implementation]:
    """Every op, by name."""
    functions: dict[str, tuple[Any, Any]] = {
        "attention": (_attention_forward, _attention_backward),
        "varlen_attention": (_varlen_forward, _varlen_backward),
        "kvcache_attention": (_kvcache_forward, None),
        "softmax": (partial(_softmax_forward, log=False), partial(_softmax_backward, log=False)),
        "log_softmax": (partial(_softmax_forward, log=True), partial(_softmax_backward, log=True)),
        "ffn": (_ffn_forward, _ffn_backward),
    }
    return {
        op: Implementation(partial(forward, kernels), backward and partial(backward, kernels), unsupported)
        for op, (forward, backward) in functions.items()
    }
