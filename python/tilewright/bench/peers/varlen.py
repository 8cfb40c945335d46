"""Attention over packed sequences: FlashAttention, xformers, FlexAttention; torch's SDPA padded, and nested."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import Varlen
from . import Peer, Refused
from .attention import flash_attn_functions

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def cu_seqlens(shape: Varlen, device: str) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(shape.lengths)], dtype=torch.int32, device=device)


def _padded(shape: Varlen, device: str) -> Forward:
    """What a user does without a packed kernel: pad, mask, and take the rows that are there."""
    longest, batch = max(shape.lengths), len(shape.lengths)
    lengths = torch.tensor(shape.lengths, device=device)
    there = torch.arange(longest, device=device) < lengths[:, None]
    keep = there[:, None, None, :]
    if shape.causal:
        keep = keep & torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    index = there.flatten().nonzero().squeeze(1)
    grouped = shape.heads != shape.heads_kv

    def pad(t: Tensor) -> Tensor:
        full = t.new_zeros(batch * longest, *t.shape[1:]).index_copy(0, index, t)
        return full.view(batch, longest, *t.shape[1:]).transpose(1, 2)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(pad(q), pad(k), pad(v), attn_mask=keep, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1)[index]

    return attention


def _nested(shape: Varlen, device: str) -> Forward:
    if shape.heads != shape.heads_kv:
        raise Refused("torch's jagged SDPA is measured with as many heads of k and v")
    bounds = cu_seqlens(shape, device).long()
    shortest, longest = min(shape.lengths), max(shape.lengths)

    def jagged(t: Tensor) -> Tensor:
        made = torch.nested.nested_tensor_from_jagged(t, bounds, min_seqlen=shortest, max_seqlen=longest)
        return made.transpose(1, 2)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(jagged(q), jagged(k), jagged(v), is_causal=shape.causal)
        return out.transpose(1, 2).values()

    return attention


def _flex(shape: Varlen, device: str) -> Forward:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    total = sum(shape.lengths)
    document = torch.repeat_interleave(torch.tensor(shape.lengths, device=device))

    def keep(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = document[i] == document[j]
        return same & (i >= j) if shape.causal else same

    mask = create_block_mask(keep, None, None, total, total, device=device)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    grouped = shape.heads != shape.heads_kv

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        out: Tensor = compiled(q, k, v, block_mask=mask, enable_gqa=grouped)
        return out[0].transpose(0, 1)

    return attention


def _flash(version: int, shape: Varlen, device: str) -> Forward:
    if shape.dtype == "float32":
        raise Refused("flash-attn takes float16 and bfloat16")
    function = flash_attn_functions(version)[1]
    bounds, longest = cu_seqlens(shape, device), max(shape.lengths)
    options = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "causal": shape.causal}
    options.update(max_seqlen_q=longest, max_seqlen_k=longest)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v, **options)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    return attention


def _xformers(shape: Varlen, device: str) -> Forward:
    from xformers.ops import fmha, memory_efficient_attention

    if shape.heads != shape.heads_kv:
        raise Refused("measured with as many heads of k and v")
    kind = fmha.attn_bias.BlockDiagonalCausalMask if shape.causal else fmha.attn_bias.BlockDiagonalMask
    bias = kind.from_seqlens(list(shape.lengths))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)
        return out[0]

    return attention


PEERS = (
    Peer("sdpa padded", ("torch",), _padded),
    Peer("sdpa nested", ("torch",), _nested),
    Peer("flex", ("torch",), _flex),
    Peer("flash-attn 2", ("flash-attn",), functools.partial(_flash, 2), ("cuda",)),
    Peer("flash-attn 3", ("flash-attn-3", "flash_attn_3"), functools.partial(_flash, 3), ("cuda",)),
    Peer("flash-attn 4", ("flash-attn-4",), functools.partial(_flash, 4), ("cuda",)),
    Peer("xformers", ("xformers",), _xformers, ("cuda",)),
)
