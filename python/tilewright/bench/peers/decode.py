"""One query over a cache: torch's SDPA and FlexAttention where it is contiguous; FlashAttention and FlashInfer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import shapes
from ..shapes import Decode
from . import Peer, Refused
from . import attention as dense

#: (q (B, H, 1, D), k and v (B, Hkv, S, D) or (pages, Hkv, page_size, D), block_table or None) -> (B, H, 1, D)
Forward = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def _as_attention(name: str, shape: Decode, device: str) -> Forward:
    """A peer of plain attention, whose queries are fewer than its keys here."""
    if shape.page_size is not None:
        raise Refused("it reads contiguous caches only")
    peer = next(p for p in dense.PEERS if p.name == name)
    sizes = (shape.batch, shape.heads, shape.heads_kv, shape.seqlen_k, shape.head_dim)
    function = peer.make(shapes.Attention(shape.scene, shape.dtype, *sizes), device)
    return lambda q, k, v, table: function(q, k, v)


def _like(name: str) -> Peer:
    peer = next(p for p in dense.PEERS if p.name == name)
    return Peer(name, peer.distributions, functools.partial(_as_attention, name), peer.devices, backward=False)


def _flash(shape: Decode, device: str) -> Forward:
    from flash_attn import flash_attn_with_kvcache

    lengths = torch.full((shape.batch,), shape.seqlen_k, dtype=torch.int32, device=device)
    if shape.page_size is not None and shape.page_size % 256 != 0:
        raise Refused(f"FlashAttention 2 takes pages of multiples of 256 keys, not {shape.page_size}")

    def attention(q: Tensor, k: Tensor, v: Tensor, table: Any) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out: Tensor = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, block_table=table)
        return out.transpose(1, 2)

    return attention


def _flashinfer(shape: Decode, device: str) -> Forward:
    """Its batch decode, over pages; a contiguous cache is one page for each sequence."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    page = shape.page_size or shape.seqlen_k
    per = -(-shape.seqlen_k // page)
    workspace = torch.empty(128 * 2**20, dtype=torch.uint8, device=device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")
    bounds = torch.arange(shape.batch + 1, dtype=torch.int32, device=device) * per
    last = torch.full((shape.batch,), shape.seqlen_k - (per - 1) * page, dtype=torch.int32, device=device)
    planned = False

    def attention(q: Tensor, k: Tensor, v: Tensor, table: Any) -> Tensor:
        nonlocal planned
        if not planned:  # once for a generated token in real use: not part of a layer's call
            one_each = torch.arange(shape.batch, dtype=torch.int32, device=device)
            pages = one_each if table is None else table.flatten()
            sizes = (shape.heads, shape.heads_kv, shape.head_dim, page)
            wrapper.plan(bounds, pages, last, *sizes, q_data_type=q.dtype, kv_data_type=k.dtype)
            planned = True
        out: Tensor = wrapper.run(q.squeeze(2), (k, v))
        return out.unsqueeze(2)

    return attention


PEERS = (
    *(_like(n) for n in ("eager", "sdpa flash", "sdpa cudnn", "sdpa efficient", "sdpa math", "compile", "flex")),
    Peer("flash-attn 2", ("flash-attn",), _flash, ("cuda",), backward=False),
    Peer("flashinfer", ("flashinfer-python",), _flashinfer, ("cuda",), backward=False),
)
