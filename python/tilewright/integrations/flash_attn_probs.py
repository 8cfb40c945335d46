"""``S_dmask``, what FlashAttention's ``return_attn_probs=True`` returns last: probabilities, and what dropout did.

No kernel writes the matrix of probabilities. It is read out of the kernels themselves: attention over one-hot values
gives the probabilities, column by column, and with the call's own random state it gives them as dropout left them.
That costs two more forward passes for every 256 keys, and memory for the whole matrix; as in FlashAttention, it is
for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops._features import MAX_HEAD_DIM
from ..ops.attention import OP as ATTENTION
from ..ops.attention import AttentionCall
from ..ops.varlen_attention import OP as VARLEN_ATTENTION
from ..ops.varlen_attention import VarlenAttentionCall


def no_probabilities(q: Tensor) -> Tensor:
    """What FlashAttention returns in place of the probabilities when nothing is dropped."""
    return q.new_empty(0)


@torch.no_grad()
def dense_probabilities(call: AttentionCall) -> Tensor:
    """(B, H, Sq, Sk) in q's dtype: the softmax; negative where dropout dropped."""
    batch, heads_kv, seqlen_k = call.k.shape[:3]
    positions = torch.arange(seqlen_k, device=call.k.device).expand(batch, heads_kv, seqlen_k)
    return _by_columns(lambda c: ATTENTION(c, None)[0], call, positions, seqlen_k)


@torch.no_grad()
def varlen_probabilities(call: VarlenAttentionCall) -> Tensor:
    """(B, H, max_seqlen_q, max_seqlen_k) in q's dtype, by position within each sequence; 0 where there is none."""
    total_k, heads_kv = call.k.shape[:2]
    where = positions_of(call.cu_seqlens_k, total_k)[1]
    packed = _by_columns(
        lambda c: VARLEN_ATTENTION(c, None)[0], call, where[:, None].expand(total_k, heads_kv), call.max_seqlen_k
    )
    sequence, row = positions_of(call.cu_seqlens_q, call.q.shape[0])
    batch, heads = call.cu_seqlens_q.shape[0] - 1, call.q.shape[1]
    padded = packed.new_zeros(batch, call.max_seqlen_q, heads, call.max_seqlen_k)
    padded[sequence, row] = packed
    return padded.transpose(1, 2)


def positions_of(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For each of ``total`` packed rows, its sequence and its position in that sequence."""
    rows = torch.arange(total, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens, rows, right=True) - 1
    return sequence, rows - cu_seqlens[sequence]


def _by_columns(forward: Callable[[Any], Tensor], call: Any, positions: Tensor, columns: int) -> Tensor:
    """The probabilities of ``call``, at most MAX_HEAD_DIM columns at a time. positions: of each key, in v's shape."""
    parts = []
    for start in range(0, columns, MAX_HEAD_DIM):
        block = torch.arange(start, min(start + MAX_HEAD_DIM, columns), device=positions.device)
        one_hot = (positions.unsqueeze(-1) == block).to(call.v.dtype)
        thinned = forward(call._replace(v=one_hot, keep_stats=False))
        whole = forward(call._replace(v=one_hot, keep_stats=False, rng=None, dropout_p=0.0))
        parts.append(torch.where(thinned == 0, -whole, whole))
    return torch.cat(parts, -1) if parts else call.q.new_empty((*call.q.shape[:-1], 0))
