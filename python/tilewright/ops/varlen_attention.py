"""varlen_attention: attention over sequences of different lengths packed into one tensor."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from torch import Tensor

from ._checks import (
    accumulator,
    autocast,
    check_dense,
    check_int,
    check_lengths,
    check_probability,
    shape,
    unit_last_stride,
)
from ._dropout import draw_rng
from ._features import OPTIONS_DOC, check_features, check_heads, check_qkv, pairs, tensor_bytes
from ._op import Cost, Op
from .attention import gradient_like, without_grad


class VarlenAttentionCall(NamedTuple):
    """q (total_q, H, D), k (total_k, Hkv, D), v (total_k, Hkv, Dv), cu_seqlens (B + 1,) int32;
    mask broadcastable to (B, H, max_seqlen_q, max_seqlen_k), by position within each sequence."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    mask: Tensor | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    rng: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int
    causal: str | None
    window_left: int
    window_right: int
    softcap: float
    scale: float
    dropout_p: float
    deterministic: bool
    keep_stats: bool


def allocate(call: VarlenAttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """out, lse and row_stats, as attention's."""
    total_q, heads, _ = call.q.shape
    out = call.q.new_empty((total_q, heads, call.v.shape[-1]))
    lse = call.q.new_empty((heads, total_q), dtype=accumulator(call.q.dtype))
    return out, lse, lse.new_empty((*lse.shape, 2) if call.keep_stats else (0,) * 3)


def cost(call: VarlenAttentionCall) -> Cost:
    heads, head_dim, head_dim_v = call.q.shape[1], call.q.shape[2], call.v.shape[2]
    lengths_q, lengths_k = call.cu_seqlens_q.diff().tolist(), call.cu_seqlens_k.diff().tolist()
    kept = sum(
        pairs(nq, nk, call.causal, call.window_left, call.window_right)
        for nq, nk in zip(lengths_q, lengths_k, strict=True)
    )
    rows = call.q.shape[0] * heads
    written = rows * (head_dim_v * call.q.element_size() + accumulator(call.q.dtype).itemsize)  # out and lse
    given = tensor_bytes(call.q, call.k, call.v, call.mask, call.sinks, call.cu_seqlens_q, call.cu_seqlens_k)
    return Cost(2 * heads * kept * (head_dim + head_dim_v), given + written)


def check_cu_seqlens(name: str, cu_seqlens: Tensor, total: int, longest: int, longest_name: str, packed: str) -> None:
    """The contents of cu_seqlens: from 0 to ``total``, never falling, no sequence longer than ``longest``."""
    bounds = cu_seqlens.tolist()
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != total:
        raise ValueError(
            f"{name} runs from {bounds[0]} to {bounds[-1]}; it must run from 0 to {total}, the rows of {packed}"
        )
    if min(lengths, default=0) < 0:
        raise ValueError(
            f"{name} falls at position {next(i for i, n in enumerate(lengths) if n < 0)}; it must not decrease"
        )
    if max(lengths, default=0) > longest:
        raise ValueError(f"{longest_name}={longest} but {name} holds a sequence of length {max(lengths)}")


def check_values(call: VarlenAttentionCall) -> None:
    # On a GPU reading the contents would stall the stream; there the kernels clamp to the tensors' bounds.
    if call.cu_seqlens_q.device.type == "cpu":
        check_cu_seqlens("cu_seqlens_q", call.cu_seqlens_q, call.q.shape[0], call.max_seqlen_q, "max_seqlen_q", "q")
        check_cu_seqlens("cu_seqlens_k", call.cu_seqlens_k, call.k.shape[0], call.max_seqlen_k, "max_seqlen_k", "k")


def prepare(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    *,
    mask: Any,
    causal: Any,
    window: Any,
    softcap: Any,
    alibi_slopes: Any,
    sinks: Any,
    dropout_p: Any,
    scale: Any,
    deterministic: Any,
) -> VarlenAttentionCall:
    """Check the arguments of :func:`varlen_attention` and bring them into canonical form."""
    q, k, v = autocast(q, k, v)
    names = ("q", "k", "v")
    check_qkv(q, k, v, names, 3, "(total, H, D)")
    check_heads(q, k, v, names, 1)
    if v.shape[0] != k.shape[0]:
        raise ValueError(
            f"v has {v.shape[0]} rows but k has {k.shape[0]}; they must be the same ({shape(k)}, {shape(v)})"
        )
    if isinstance(cu_seqlens_q, Tensor):
        check_dense("cu_seqlens_q", cu_seqlens_q)
    if not isinstance(cu_seqlens_q, Tensor) or cu_seqlens_q.dim() != 1 or cu_seqlens_q.shape[0] < 1:
        given = shape(cu_seqlens_q) if isinstance(cu_seqlens_q, Tensor) else type(cu_seqlens_q).__name__
        raise TypeError(f"cu_seqlens_q must be an int32 torch.Tensor of shape (B + 1,), got {given}")
    batch = cu_seqlens_q.shape[0] - 1
    check_lengths("cu_seqlens_q", cu_seqlens_q, batch + 1, "B + 1 boundaries", q)
    check_lengths("cu_seqlens_k", cu_seqlens_k, batch + 1, "B + 1 boundaries, B from cu_seqlens_q", q)
    max_seqlen_q, max_seqlen_k = check_int("max_seqlen_q", max_seqlen_q), check_int("max_seqlen_k", max_seqlen_k)
    for name, longest in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        if longest < 0:
            raise ValueError(f"{name}={longest} must not be negative")
    features = check_features(
        q,
        batch,
        q.shape[1],
        max_seqlen_q,
        max_seqlen_k,
        mask=mask,
        causal=causal,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        scale=scale,
    )
    dropout_p = check_probability("dropout_p", dropout_p)
    return VarlenAttentionCall(
        unit_last_stride(q),
        unit_last_stride(k),
        unit_last_stride(v),
        cu_seqlens_q.contiguous(),
        cu_seqlens_k.contiguous(),
        features.mask,
        features.alibi_slopes,
        features.sinks,
        draw_rng(dropout_p, q.device),
        max_seqlen_q,
        max_seqlen_k,
        features.causal,
        features.window_left,
        features.window_right,
        features.softcap,
        features.scale,
        dropout_p,
        bool(deterministic),
        True,
    )


OP = Op(
    name="varlen_attention",
    call=VarlenAttentionCall,
    outputs=("out", "lse", "row_stats"),
    allocate=allocate,
    cost=cost,
    prepare=prepare,
    differentiable=("q", "k", "v", "mask", "sinks"),
    saved=("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "mask", "alibi_slopes", "sinks", "rng"),
    intermediates=("row_stats",),
    rows=("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "sinks", "rng"),
    gradient_like=gradient_like,
    without_grad=without_grad,
    check_values=check_values,
)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    mask: Tensor | None = None,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    return_lse: bool = False,
    deterministic: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = OP(
        prepare(
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            max_seqlen_k,
            mask=mask,
            causal=causal,
            window=window,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            dropout_p=dropout_p,
            scale=scale,
            deterministic=deterministic,
        ),
        backend,
    )
    return (out, lse) if return_lse else out


varlen_attention.__doc__ = f"""Attention over B sequences of different lengths, packed without padding.

    Sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1]; it attends to its own keys only. Positions, causal bounds,
    windows, masks and dropout are those of each sequence by itself, with its own Sq and Sk.

    Args:
        q: (total_q, H, D), k: (total_k, Hkv, D), v: (total_k, Hkv, Dv); as in :func:`attention`.
        cu_seqlens_q, cu_seqlens_k: (B + 1,) int32, from 0 to total_q and total_k, never falling.
        max_seqlen_q, max_seqlen_k: at least the longest sequence.
        {OPTIONS_DOC.format(mask_shape="(B, H, max_seqlen_q, max_seqlen_k)").strip()}
        dropout_p: probability of dropping each attention weight; the mask comes from torch's generator
        (torch.manual_seed).
        return_lse, deterministic: as in :func:`attention`.

    Returns:
        out (total_q, H, Dv); with return_lse also lse (H, total_q), float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. What cu_seqlens hold is checked on the CPU.
        BackendError: the requested backend cannot serve the call.
    """
