"""Variable-length attention, as it is defined: each sequence by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops._checks import accumulator
from ..ops.varlen_attention import VarlenAttentionCall
from .attention import attend, no_row_stats


def _of_sequence(mask: Tensor | None, b: int, seqlen_q: int, seqlen_k: int) -> Tensor | None:
    """The mask of sequence ``b``, cut to its lengths where it is not broadcast."""
    if mask is None:
        return None
    mask = mask[b : b + 1] if mask.shape[0] > 1 else mask
    mask = mask[:, :, :seqlen_q] if mask.shape[2] > 1 else mask
    return mask[..., :seqlen_k] if mask.shape[3] > 1 else mask


def forward(call: VarlenAttentionCall, compute_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    heads = call.q.shape[1]
    bounds_q, bounds_k = call.cu_seqlens_q.tolist(), call.cu_seqlens_k.tolist()
    outs = [call.q.new_empty((0, heads, call.v.shape[2]))]
    lses = [torch.empty((heads, 0), dtype=accumulator(call.q.dtype), device=call.q.device)]
    for b in range(len(bounds_q) - 1):
        rows_q, rows_k = slice(*bounds_q[b : b + 2]), slice(*bounds_k[b : b + 2])
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (call.q[rows_q], call.k[rows_k], call.v[rows_k]))
        out, lse = attend(
            q,
            k,
            v,
            mask=_of_sequence(call.mask, b, q.shape[2], k.shape[2]),
            alibi_slopes=None if call.alibi_slopes is None else call.alibi_slopes[b : b + 1],
            sinks=call.sinks,
            causal=call.causal,
            window_left=call.window_left,
            window_right=call.window_right,
            softcap=call.softcap,
            scale=call.scale,
            rng=call.rng,
            dropout_p=call.dropout_p,
            first_plane=b * heads,
            compute_dtype=compute_dtype,
        )
        outs.append(out.squeeze(0).transpose(0, 1))
        lses.append(lse.squeeze(0))
    lse = torch.cat(lses, 1)
    return torch.cat(outs), lse, no_row_stats(lse, call.keep_stats)
