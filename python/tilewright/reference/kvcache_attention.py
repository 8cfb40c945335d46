"""Key/value-cache attention, as it is defined: append, gather each sequence's keys, attend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops._checks import accumulator
from ..ops.attention import empty_output
from ..ops.kvcache_attention import KvcacheAttentionCall
from .attention import attend
from .varlen_attention import _of_sequence


def _positions(call: KvcacheAttentionCall, b: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Where positions [first, last) of sequence ``b`` lie: entries of the cache's first dimension, and rows within."""
    positions = torch.arange(first, last, device=call.q.device)
    if call.block_table is None:
        return torch.full_like(positions, b), positions
    page_size = call.k_cache.shape[2]
    return call.block_table[b].long()[positions // page_size], positions % page_size


def forward(call: KvcacheAttentionCall, compute_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    out = empty_output(call.q, call.v_cache.shape[3])
    lse = torch.empty(call.q.shape[:3], dtype=accumulator(call.q.dtype), device=call.q.device)
    for b, old in enumerate(call.cache_seqlens.tolist()):
        length = old
        if call.k is not None and call.v is not None:
            length = old + call.k.shape[2]
            where, rows = _positions(call, b, old, length)
            # Indices on both sides of the heads put the positions first: (Snew, Hkv, D).
            call.k_cache[where, :, rows] = call.k[b].transpose(0, 1)
            call.v_cache[where, :, rows] = call.v[b].transpose(0, 1)
        where, rows = _positions(call, b, 0, length)
        k, v = (cache[where, :, rows].transpose(0, 1).unsqueeze(0) for cache in (call.k_cache, call.v_cache))
        q = call.q[b : b + 1]
        out_b, lse_b = attend(
            q,
            k,
            v,
            mask=_of_sequence(call.mask, b, q.shape[2], length),
            alibi_slopes=None if call.alibi_slopes is None else call.alibi_slopes[b : b + 1],
            sinks=call.sinks,
            causal=call.causal,
            window_left=call.window_left,
            window_right=call.window_right,
            softcap=call.softcap,
            scale=call.scale,
            compute_dtype=compute_dtype,
        )
        out[b], lse[b] = out_b[0], lse_b[0]
    return out, lse
