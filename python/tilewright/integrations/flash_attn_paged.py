"""Packed queries over paged keys and values: ``block_table`` of ``flash_attn_varlen_func``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import kvcache_attention as kvcache
from ..ops._checks import check_lengths, shape
from ..ops._features import check_qkv
from ..ops.varlen_attention import check_cu_seqlens
from .flash_attn_probs import positions_of


def check_block_table(block_table: Any, q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any) -> None:
    if not isinstance(q, Tensor) or q.dim() != 3:
        given = shape(q) if isinstance(q, Tensor) else type(q).__name__
        raise ValueError(f"q is {given}; it must have shape (total_q, H, D)")
    check_qkv(q.unsqueeze(0), k, v, ("q", "k", "v"), 4, "(num_blocks, page_block_size, Hkv, D) with block_table")
    if not isinstance(cu_seqlens_q, Tensor) or cu_seqlens_q.dim() != 1 or cu_seqlens_q.shape[0] < 1:
        given = shape(cu_seqlens_q) if isinstance(cu_seqlens_q, Tensor) else type(cu_seqlens_q).__name__
        raise TypeError(f"cu_seqlens_q must be an int32 torch.Tensor of shape (B + 1,), got {given}")
    bounds = cu_seqlens_q.shape[0]
    check_lengths("cu_seqlens_q", cu_seqlens_q, bounds, "B + 1 boundaries", q)
    check_lengths("cu_seqlens_k", cu_seqlens_k, bounds, "B + 1 boundaries, B from cu_seqlens_q", q)
    if not isinstance(block_table, Tensor) or block_table.dtype != torch.int32:
        given = str(block_table.dtype) if isinstance(block_table, Tensor) else type(block_table).__name__
        raise TypeError(f"block_table must be an int32 torch.Tensor, got {given}")
    if block_table.dim() != 2 or block_table.shape[0] != bounds - 1 or block_table.device != q.device:
        raise ValueError(
            f"block_table of shape {shape(block_table)} on {block_table.device} must be (B, max_pages) with "
            f"B = {bounds - 1}, on {q.device}"
        )
    if k.shape[1] == 0:
        raise ValueError("k has pages of size 0; with block_table a page holds at least one position")


def one_length(q: Tensor, cu_seqlens_q: Tensor, max_seqlen_q: int) -> bool:
    """Whether all sequences have max_seqlen_q queries. No sequence has more, so their sum tells."""
    return q.shape[0] == (cu_seqlens_q.shape[0] - 1) * max_seqlen_q


def attend_in_place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    block_table: Tensor,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """out (total_q, H, Dv), lse (H, total_q), for sequences of one length (decoding): no key is copied."""
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q, "max_seqlen_q", "q")
    queries = q.unflatten(0, (cu_seqlens_q.shape[0] - 1, max_seqlen_q))
    call = kvcache.prepare(
        queries,
        k,
        v,
        k=None,
        v=None,
        cache_seqlens=cu_seqlens_k.diff(),
        block_table=block_table,
        num_splits=0,
        layout="bshd",
        **options,
    )
    out, lse = kvcache.OP(call, None)
    return out.transpose(1, 2).flatten(0, 1), lse.transpose(0, 1).flatten(1)


def gather_pages(
    k: Tensor, v: Tensor, cu_seqlens_k: Tensor, max_seqlen_k: int, block_table: Tensor
) -> tuple[Tensor, Tensor]:
    """The keys and values that ``block_table`` names, packed: (total_k, Hkv, D and Dv), one copy of what is used."""
    page_size, num_pages = k.shape[1], k.shape[0]
    total = int(cu_seqlens_k[-1])
    check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, total, max_seqlen_k, "max_seqlen_k", "the paged keys")
    longest, capacity = int(cu_seqlens_k.diff().max()) if len(cu_seqlens_k) > 1 else 0, block_table.shape[1] * page_size
    if longest > capacity:
        raise ValueError(
            f"cu_seqlens_k holds a sequence of length {longest}, but a row of block_table reaches {capacity} positions"
        )
    sequence, position = positions_of(cu_seqlens_k, total)
    pages = block_table[sequence, position // page_size].long()
    wrong = ((pages < 0) | (pages >= num_pages)).nonzero()
    if len(wrong) > 0:
        first = wrong[0, 0]
        raise ValueError(
            f"block_table[{int(sequence[first])}] names page {int(pages[first])}, out of range: k has pages 0 to "
            f"{num_pages - 1}"
        )
    within = position % page_size
    return k[pages, within], v[pages, within]
