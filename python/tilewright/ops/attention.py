"""attention: softmax(q @ k^T) @ v over dense batches."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ._checks import accumulator, autocast, check_probability, shape, unit_last_stride
from ._dropout import draw_rng
from ._features import OPTIONS_DOC, check_features, check_heads, check_qkv, pairs, tensor_bytes
from ._memory import contiguous_like
from ._op import Cost, Op, contiguous_gradient

LAYOUTS = ("bhsd", "bshd")


class AttentionCall(NamedTuple):
    """q (B, H, Sq, D), k (B, Hkv, Sk, D), v (B, Hkv, Sk, Dv); mask (B or 1, H or 1, Sq or 1, Sk or 1);
    alibi_slopes (B, H) float32; sinks (H,) contiguous; rng (2,) int64. A window side of -1 is no limit."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    rng: Tensor | None
    causal: str | None
    window_left: int
    window_right: int
    softcap: float
    scale: float
    dropout_p: float
    deterministic: bool
    keep_stats: bool


def empty_output(t: Tensor, width: int) -> Tensor:
    """Rows of ``width`` in t's memory order: a transposed (B, S, H, D) input gives an output whose transpose is
    contiguous. Memory of its own: no two elements share a place, as those of a window or an expanded t do."""
    if t.is_contiguous():
        return contiguous_like(t) if width == t.shape[-1] else t.new_empty((*t.shape[:-1], width))
    sizes, strides = t.shape[:-1], t.stride()[:-1]
    if list(strides) == sorted(strides, reverse=True) or 0 in strides:  # an expanded dimension has no place in memory
        return t.new_empty((*sizes, width))
    order = sorted(range(len(sizes)), key=lambda d: -strides[d])
    out = t.new_empty((*(sizes[d] for d in order), width))
    return out.permute(*(order.index(d) for d in range(len(sizes))), len(sizes))


def gradient_like(call: Any, name: str) -> Tensor:
    """Of q, k and v in their own memory order, with the unit last stride that kernels write to."""
    t: Tensor = getattr(call, name)
    return empty_output(t, t.shape[-1]) if name in ("q", "k", "v") else contiguous_gradient(call, name)


def allocate(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """out, lse, and row_stats, from which a backend's backward rebuilds the probabilities; empty when there is none."""
    q = call.q
    lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
    return empty_output(q, call.v.shape[-1]), lse, lse.new_empty((*lse.shape, 2) if call.keep_stats else (0,) * 4)


def without_grad(call: Any) -> Any:
    assert call._fields[-1] == "keep_stats"
    return call._make((*call[:-1], False))  # less than half of what _replace takes


def cost(call: AttentionCall) -> Cost:
    batch, heads, seqlen_q, head_dim = call.q.shape
    seqlen_k, head_dim_v = call.v.shape[-2:]
    kept = batch * heads * pairs(seqlen_q, seqlen_k, call.causal, call.window_left, call.window_right)
    out_bytes = batch * heads * seqlen_q * (head_dim_v * call.q.element_size() + accumulator(call.q.dtype).itemsize)
    return Cost(
        2 * kept * (head_dim + head_dim_v), tensor_bytes(call.q, call.k, call.v, call.mask, call.sinks) + out_bytes
    )


def prepare(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any,
    causal: Any,
    window: Any,
    softcap: Any,
    alibi_slopes: Any,
    sinks: Any,
    dropout_p: Any,
    scale: Any,
    layout: Any,
    deterministic: Any,
) -> AttentionCall:
    """Check the arguments of :func:`attention` and bring them into canonical form."""
    q, k, v = autocast(q, k, v)
    names = ("q", "k", "v")
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be 'bhsd' or 'bshd'")
    check_qkv(q, k, v, names, 4, "(B, H, S, D)" if layout == "bhsd" else "(B, S, H, D)")
    if layout == "bshd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    check_heads(q, k, v, names, 1)
    for name, t in (("k", k), ("v", v)):
        if t.shape[0] != q.shape[0]:
            raise ValueError(f"{name} has batch size {t.shape[0]} but q has {q.shape[0]}; they must be the same")
    if v.shape[2] != k.shape[2]:
        raise ValueError(
            f"v has {v.shape[2]} positions but k has {k.shape[2]}; they must be the same ({shape(k)}, {shape(v)})"
        )
    features = check_features(
        q,
        q.shape[0],
        q.shape[1],
        q.shape[2],
        k.shape[2],
        mask=mask,
        causal=causal,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        scale=scale,
    )
    dropout_p = check_probability("dropout_p", dropout_p)
    return AttentionCall(
        unit_last_stride(q),
        unit_last_stride(k),
        unit_last_stride(v),
        features.mask,
        features.alibi_slopes,
        features.sinks,
        draw_rng(dropout_p, q.device),
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
    name="attention",
    call=AttentionCall,
    outputs=("out", "lse", "row_stats"),
    allocate=allocate,
    cost=cost,
    prepare=prepare,
    differentiable=("q", "k", "v", "mask", "sinks"),
    saved=("q", "k", "v", "mask", "alibi_slopes", "sinks", "rng"),
    intermediates=("row_stats",),
    rows=("q", "k", "v", "sinks", "rng"),
    gradient_like=gradient_like,
    without_grad=without_grad,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    layout: str = "bhsd",
    return_lse: bool = False,
    deterministic: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = OP(
        prepare(
            q,
            k,
            v,
            mask=mask,
            causal=causal,
            window=window,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            dropout_p=dropout_p,
            scale=scale,
            layout=layout,
            deterministic=deterministic,
        ),
        backend,
    )
    if layout == "bshd":
        out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


attention.__doc__ = f"""Scaled dot-product attention, ``softmax(scale * q @ k^T) @ v``, with no S x S matrix in memory.

    Dao et al., "FlashAttention" (2022) and "FlashAttention-2" (2023). Grouped-query attention needs no flag: H is a
    multiple of Hkv, and query head h reads key head h // (H / Hkv).

    A query with nothing to attend to gives 0, with zero gradients; never NaN.

    Args:
        q: (B, H, Sq, D); float32, float16, bfloat16 or float64. D is 1 to {256}.
        k: (B, Hkv, Sk, D), v: (B, Hkv, Sk, Dv); q's dtype and device. Any strides; only a strided last dimension is
        copied.
        {OPTIONS_DOC.format(mask_shape="(B, H, Sq, Sk)").strip()}
        dropout_p: probability of dropping each attention weight; the mask comes from torch's generator
        (torch.manual_seed).
        layout: "bhsd", or "bshd" when q, k, v and the output are (B, S, H, D). The mask stays (B, H, Sq, Sk).
        return_lse: also return the log of the softmax denominators; it is differentiable.
        deterministic: gradients are bitwise equal over reruns, also on backends where that costs speed.

    Returns:
        out (B, H, Sq, Dv), in q's memory order; with return_lse also lse (B, H, Sq), float32 (float64 for float64
        inputs),
        -inf for a query with nothing to attend to.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        BackendError: the requested backend cannot serve the call.
    """
