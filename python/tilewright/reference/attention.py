"""Attention, as it is defined: the S x S matrix and all. Any floating dtype, differentiable to any order.

s = scale * q k^T;  s = softcap tanh(s / softcap);  s += alibi + mask;  excluded pairs are -inf, and in no sum
p = exp(s - lse),  lse = log(sum exp(s) + exp(sink));  out = dropout(p) v
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops._checks import accumulator, transforming
from ..ops._dropout import dropout_scale
from ..ops.attention import AttentionCall, empty_output
from ..selection import scores, weighted
from .philox import keep_mask


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    causal: str | None,
    window_left: int,
    window_right: int,
    softcap: float,
    scale: float,
    rng: Tensor | None = None,
    dropout_p: float = 0.0,
    first_plane: int = 0,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """q (B, H, Sq, D), k (B, Hkv, Sk, D), v (B, Hkv, Sk, Dv) -> out (B, H, Sq, Dv), lse (B, H, Sq).

    compute_dtype: what the math is done in; at least float32 when None.
    """
    dtype = compute_dtype or accumulator(q.dtype)
    heads, group = q.shape[1], q.shape[1] // max(k.shape[1], 1)
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    queries, keys, values = q.to(dtype), k.to(dtype), v.to(dtype)
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    shift = 0 if causal == "top_left" else seqlen_k - seqlen_q
    distance = torch.arange(seqlen_q, device=q.device)[:, None] + shift - torch.arange(seqlen_k, device=q.device)
    keep = torch.ones_like(distance, dtype=torch.bool)
    if causal is not None:
        keep &= distance >= 0
    if window_left >= 0:
        keep &= distance <= window_left
    if window_right >= 0:
        keep &= distance >= -window_right
    if mask is not None:
        keep = keep & (mask if mask.dtype == torch.bool else mask != -torch.inf)
    excludes = causal is not None or window_left >= 0 or window_right >= 0 or mask is not None or rng is not None
    keep = keep.expand(*queries.shape[:-1], seqlen_k)
    s = (scores(queries, keys, keep) if excludes else queries @ keys.mT) * scale
    if softcap > 0.0:
        s = softcap * torch.tanh(s / softcap)
    if alibi_slopes is not None:
        s = s - alibi_slopes.to(dtype)[:, :, None, None] * distance.abs().to(dtype)
    if mask is not None and mask.dtype != torch.bool:
        s = s + mask.to(dtype)
    s = torch.where(keep, s, -torch.inf)

    # The maximum only shifts the exponents, so no gradient flows through it.
    top = s.detach().amax(-1, keepdim=True) if seqlen_k > 0 else s.new_full((*s.shape[:-1], 1), -torch.inf)
    sink = None if sinks is None else sinks.to(dtype)[:, None, None]
    if sink is not None:
        top = torch.maximum(top, sink.detach())
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    p = torch.exp(s - top)
    total = p.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - top)
    empty = total == 0
    safe = torch.where(empty, torch.ones_like(total), total)
    p = p / safe
    lse = torch.where(empty, torch.full_like(total, -torch.inf), top + torch.log(safe)).squeeze(-1)
    if rng is not None:
        planes = torch.arange(first_plane, first_plane + q.shape[0] * heads, device=q.device).view(-1, heads, 1)
        kept = keep_mask(rng, planes, torch.arange(seqlen_q, device=q.device), seqlen_k, dropout_p)
        keep = keep & kept
        p = torch.where(kept, p * dropout_scale(dropout_p), 0.0)
    out = weighted(p, values, keep) if excludes else p @ values
    return out.to(q.dtype), lse.to(accumulator(q.dtype))


def forward(call: AttentionCall, compute_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    out, lse = attend(
        call.q,
        call.k,
        call.v,
        mask=call.mask,
        alibi_slopes=call.alibi_slopes,
        sinks=call.sinks,
        causal=call.causal,
        window_left=call.window_left,
        window_right=call.window_right,
        softcap=call.softcap,
        scale=call.scale,
        rng=call.rng,
        dropout_p=call.dropout_p,
        compute_dtype=compute_dtype,
    )
    if not transforming():
        out = empty_output(call.q, call.v.shape[3]).copy_(out)
    return out, lse, no_row_stats(lse, call.keep_stats)


def no_row_stats(lse: Tensor, keep_stats: bool) -> Tensor:
    """row_stats of a forward whose backward does not read them."""
    return lse.new_zeros((*lse.shape, 2)) if keep_stats else lse.new_empty((0,) * (lse.dim() + 1))
