"""``flash_attn_with_kvcache`` with FlashAttention 2's exact signature, on our key/value-cache kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import kvcache_attention as kvcache
from ..ops._checks import autocast, check_lengths, check_like, shape
from ..ops._features import check_qkv
from .flash_attn_options import as_bool, as_int, attention_options
from .rotary import check_tables, look_up, positions_from, rotate


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``flash_attn.flash_attn_with_kvcache``: attention of new queries over a cache, which k and v are appended to.

    The cache is never copied; with k and v it is updated in place, at cache_seqlens[b] and after. No gradient.

    Args:
        q: (B, Sq, H, D); float32, float16, bfloat16 or float64, D up to 256.
        k_cache, v_cache: (B_cache, Smax, Hkv, D and Dv), B_cache at least B; with block_table
            (num_blocks, page_block_size, Hkv, D and Dv), of any page_block_size. Their last dimension is contiguous.
        k, v: new (B, Snew, Hkv, D and Dv), or None.
        rotary_cos, rotary_sin: (positions, rotary_dim / 2), float; positions at least the capacity of the cache. Only
            with k and v. Keys are rotated at cache_seqlens[b] + 0, 1, ...; so are queries if causal or with a window,
            else all at cache_seqlens[b].
        cache_seqlens: (B,) int32, or an int for all: how many positions are filled before k and v are added. None: all.
        cache_batch_idx: (B,) int32, the cache's entry of each sequence; 0, 1, ..., B - 1 when None. Not with
            block_table.
        cache_leftpad: (B,) int32, the first position of each sequence that counts. Costs a mask of B * capacity bytes;
            the kernels read over the padding.
        block_table: (B, max_blocks) int32; position j of sequence b lies in page block_table[b, j // page_block_size].
        softmax_scale, causal, window_size, softcap, alibi_slopes: as in
            :func:`~tilewright.integrations.flash_attn.flash_attn_func`, with Sk = cache_seqlens[b] + Snew keys.
        rotary_interleaved: rotate features 0 and 1, 2 and 3, ... (GPT-J) instead of the first half with the second.
        num_splits: parts into which the keys are split and worked on side by side; 0 chooses.
        return_softmax_lse: also return the log of the softmax denominators.

    Returns:
        out (B, Sq, H, Dv); with return_softmax_lse also softmax_lse (B, H, Sq), float32 (float64 for float64 inputs),
        -inf for a query with nothing to attend to.

    Raises:
        TypeError, ValueError: an argument is wrong, or requires a gradient; the message names it. What cache_seqlens,
            cache_batch_idx, cache_leftpad and block_table hold is checked on the CPU.
        BackendError: the backend chosen with ``tilewright.use_backend`` cannot serve the call.
    """
    options = attention_options(
        causal=causal, window_size=window_size, softcap=softcap, softmax_scale=softmax_scale, alibi_slopes=alibi_slopes
    )
    return_softmax_lse = as_bool("return_softmax_lse", return_softmax_lse)
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]  # not the cache, which is updated in place
    check_qkv(q, k_cache, v_cache, ("q", "k_cache", "v_cache"), 4, "(B, S, H, D)")
    k_cache, v_cache, table = _entries(q, k_cache, v_cache, cache_batch_idx, block_table)
    capacity = k_cache.shape[1] * (1 if table is None else table.shape[-1])
    options["mask"] = None if cache_leftpad is None else _after_padding(cache_leftpad, capacity, q)
    if rotary_cos is not None or rotary_sin is not None:
        in_order = options["causal"] is not None or options["window"] != (None, None)
        interleaved = as_bool("rotary_interleaved", rotary_interleaved)
        q, k = _rotated(q, k, rotary_cos, rotary_sin, cache_seqlens, capacity, in_order, interleaved)
    call = kvcache.prepare(
        q,
        k_cache,
        v_cache,
        k=k,
        v=v,
        cache_seqlens=cache_seqlens,
        block_table=table,
        num_splits=as_int("num_splits", num_splits),
        layout="bshd",
        **options,
    )
    out, lse = kvcache.OP(call, None)
    out = out.transpose(1, 2)
    return (out, lse) if return_softmax_lse else out


def _entries(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_batch_idx: Any, block_table: Any
) -> tuple[Tensor, Tensor, Any]:
    """The caches and the block table that lead each sequence to its entry."""
    batch, entries = q.shape[0], k_cache.shape[0]
    if cache_batch_idx is None:
        if block_table is None and entries > batch:
            k_cache, v_cache = k_cache[:batch], v_cache[:batch]
        return k_cache, v_cache, block_table
    if block_table is not None:
        raise ValueError("cache_batch_idx and block_table were both given; a block table names its pages itself")
    check_lengths("cache_batch_idx", cache_batch_idx, batch, "one entry of the cache per sequence", q)
    _check_range("cache_batch_idx", cache_batch_idx, entries - 1)
    # A cache whose entries are picked is a paged cache of one page per sequence: nothing is gathered.
    return k_cache, v_cache, cache_batch_idx.unsqueeze(1)


def _check_range(name: str, t: Tensor, last: int) -> None:
    """Values of ``t`` are within [0, last]. Looked at in host memory only: on a GPU that would stall the stream."""
    if t.device.type == "cpu" and not torch.compiler.is_compiling():
        for b, value in enumerate(t.tolist()):
            if not 0 <= value <= last:
                raise ValueError(f"{name}[{b}]={value} must be between 0 and {last}")


def _after_padding(cache_leftpad: Any, capacity: int, q: Tensor) -> Tensor:
    """(B, 1, 1, capacity), bool. Positions count from the end of a sequence, so nothing else changes."""
    check_lengths("cache_leftpad", cache_leftpad, q.shape[0], "one length per sequence", q)
    _check_range("cache_leftpad", cache_leftpad, capacity)
    kept: Tensor = torch.arange(capacity, device=q.device) >= cache_leftpad[:, None]
    return kept[:, None, None]


def _rotated(
    q: Tensor,
    k: Any,
    rotary_cos: Any,
    rotary_sin: Any,
    cache_seqlens: Any,
    capacity: int,
    in_order: bool,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    if not isinstance(k, Tensor) or k.dim() != 4 or cache_seqlens is None:
        raise ValueError("rotary_cos and rotary_sin need k, v and cache_seqlens: they rotate what is appended")
    check_like("k", k, "q", q)
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k has head dim {k.shape[-1]} but q has {q.shape[-1]}; they must be the same")
    check_tables(rotary_cos, rotary_sin, ("rotary_cos", "rotary_sin"), "q", q)
    if rotary_cos.shape[0] < capacity:
        raise ValueError(
            f"rotary_cos of shape {shape(rotary_cos)} has fewer positions than the cache holds, {capacity}"
        )
    names = "rotary_cos and rotary_sin"
    of_queries = positions_from(cache_seqlens, "cache_seqlens", q.shape[1] if in_order else 1, q)
    of_keys = positions_from(cache_seqlens, "cache_seqlens", k.shape[1], q)
    rotated_q = rotate(q, *look_up(rotary_cos, rotary_sin, of_queries, names), interleaved)
    return rotated_q, rotate(k, *look_up(rotary_cos, rotary_sin, of_keys, names), interleaved)
