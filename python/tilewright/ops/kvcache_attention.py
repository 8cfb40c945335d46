"""kvcache_attention: attention of new queries over a key/value cache, contiguous or paged."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import (
    accumulator,
    autocast,
    check_dense,
    check_device,
    check_int,
    check_lengths,
    check_like,
    shape,
    unit_last_stride,
)
from ._features import OPTIONS_DOC, check_features, check_heads, check_qkv, pairs, tensor_bytes
from ._memory import overlap, shares_elements
from ._op import Cost, Op
from .attention import LAYOUTS, empty_output

#: Parts that a key range is split into at most: about two for each multiprocessor of the largest chips. More would only
#: add to what is merged.
MAX_SPLITS = 256


class KvcacheAttentionCall(NamedTuple):
    """q (B, H, Sq, D); caches (B, Hkv, Smax, D and Dv), or with block_table (num_pages, Hkv, page_size, D and Dv);
    k, v (B, Hkv, Snew, D and Dv); cache_seqlens (B,) int32, the lengths before k and v are appended."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    k: Tensor | None
    v: Tensor | None
    cache_seqlens: Tensor
    block_table: Tensor | None
    mask: Tensor | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    num_splits: int
    causal: str | None
    window_left: int
    window_right: int
    softcap: float
    scale: float


def capacity(call: KvcacheAttentionCall) -> int:
    """The longest sequence that the cache can hold."""
    per_page = call.k_cache.shape[2]
    return per_page if call.block_table is None else per_page * call.block_table.shape[1]


def allocate(call: KvcacheAttentionCall) -> tuple[Tensor, Tensor]:
    q = call.q
    return empty_output(q, call.v_cache.shape[-1]), q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))


def written(call: KvcacheAttentionCall) -> tuple[Tensor, ...]:
    return () if call.k is None or call.k.shape[2] == 0 else (call.k_cache, call.v_cache)


def cost(call: KvcacheAttentionCall) -> Cost:
    _, heads, seqlen_q, head_dim = call.q.shape
    heads_kv, head_dim_v = call.v_cache.shape[1], call.v_cache.shape[3]
    appended = 0 if call.k is None else call.k.shape[2]
    lengths = [n + appended for n in call.cache_seqlens.tolist()]
    kept = heads * sum(pairs(seqlen_q, n, call.causal, call.window_left, call.window_right) for n in lengths)
    read = sum(lengths) * heads_kv * (head_dim + head_dim_v) * call.q.element_size()
    rows = call.q.numel() // head_dim
    written = rows * (head_dim_v * call.q.element_size() + accumulator(call.q.dtype).itemsize)  # out and lse
    given = tensor_bytes(call.q, call.k, call.v, call.mask, call.sinks, call.cache_seqlens)
    return Cost(2 * kept * (head_dim + head_dim_v), given + read + written)


def check_values(call: KvcacheAttentionCall) -> None:
    if written(call):
        _check_writable(call)
    # On a GPU reading the contents would stall the stream; there the kernels clamp to the cache's bounds.
    if call.cache_seqlens.device.type != "cpu":
        return
    appended = 0 if call.k is None else call.k.shape[2]
    limit = capacity(call)
    lengths = call.cache_seqlens.tolist()
    for b, n in enumerate(lengths):
        if n < 0 or n + appended > limit:
            raise ValueError(
                f"cache_seqlens[{b}]={n} with {appended} new positions does not fit; lengths must be between 0 and the "
                f"cache's capacity, {limit}"
            )
    if call.block_table is not None:
        page_size, num_pages = call.k_cache.shape[2], call.k_cache.shape[0]
        for b, (n, row) in enumerate(zip(lengths, call.block_table.tolist(), strict=True)):
            used = row[: -(-(n + appended) // page_size)]
            bad = next((page for page in used if not 0 <= page < num_pages), None)
            if bad is not None:
                raise ValueError(
                    f"block_table[{b}] names page {bad}, out of range: k_cache has pages 0 to {num_pages - 1}"
                )


def _check_writable(call: KvcacheAttentionCall) -> None:
    """As torch does for what it writes in place."""
    caches = (("k_cache", call.k_cache), ("v_cache", call.v_cache))
    for name, cache in caches:
        if not cache.is_contiguous() and shares_elements(cache.shape, cache.stride()):
            raise ValueError(
                f"{name} of shape {shape(cache)} has strides {cache.stride()}, by which several of its elements share "
                "one place in memory; k and v cannot be written there. Give a copy: clone() it"
            )
    assert call.k is not None and call.v is not None
    others = (*caches, ("q", call.q), ("k", call.k), ("v", call.v))
    places = [t.untyped_storage().data_ptr() for _, t in others]
    if places[0] not in places[1:] and places[1] not in places[2:]:
        return
    for i, (name, cache) in enumerate(caches):
        for other, t in others[i + 1 :]:
            if overlap(cache, t):
                raise ValueError(
                    f"{other} and {name} share memory, and {name} is to be written; give {other} memory of its own: "
                    "clone() it"
                )


def _canonical_cache(cache: Tensor, name: str, layout: str, appended: bool) -> Tensor:
    if not torch.compiler.is_compiling() and (cache.is_neg() or cache._is_zerotensor()):
        if appended:
            raise ValueError(
                f"{name} is a negated view or a zero tensor of torch's, which have no elements to be updated in place; "
                f"give a copy: torch.empty_like({name}).copy_({name})"
            )
        cache = torch.empty_like(cache.detach(), memory_format=torch.contiguous_format).copy_(cache)
    cache = cache if layout == "bhsd" else cache.transpose(1, 2)
    if cache.stride(-1) != 1 and cache.shape[-1] != 1:
        raise ValueError(
            f"{name} has strides {cache.stride()}; its last dimension must be contiguous, as it is updated in place"
        )
    return cache


def _check_no_gradient(**tensors: Any) -> None:
    for name, t in tensors.items():
        if isinstance(t, Tensor) and t.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, which kvcache_attention does not have: call it under torch.no_grad(), "
                "or use attention for training"
            )


def _check_new(
    k: Any, v: Any, q: Tensor, k_cache: Tensor, v_cache: Tensor, layout: str
) -> tuple[Tensor | None, Tensor | None]:
    if (k is None) != (v is None):
        raise ValueError(
            f"{'k' if k is None else 'v'} is None but the other is not; give both new keys and values, or neither"
        )
    if k is None:
        return None, None
    new = []
    for name, t, cache in (("k", k, k_cache), ("v", v, v_cache)):
        check_like(name, t, "q", q)
        t = t.transpose(1, 2) if layout == "bshd" and t.dim() == 4 else t
        if t.dim() != 4 or t.shape[0] != q.shape[0] or t.shape[1] != cache.shape[1] or t.shape[3] != cache.shape[3]:
            expected = f"batch size {q.shape[0]}, {cache.shape[1]} heads and head dim {cache.shape[3]}"
            raise ValueError(f"{name} has shape {shape(t)} as (B, Hkv, Snew, D); it must have {expected}")
        new.append(unit_last_stride(t))
    if new[0].shape[2] != new[1].shape[2]:
        raise ValueError(f"v has {new[1].shape[2]} new positions but k has {new[0].shape[2]}; they must be the same")
    return new[0], new[1]


def _check_cache_seqlens(cache_seqlens: Any, batch: int, limit: int, appended: int, q: Tensor) -> Tensor:
    if cache_seqlens is None:
        if appended:
            raise ValueError(
                "cache_seqlens is None, a full cache, but k and v are to be appended; give the present lengths"
            )
        cache_seqlens = limit
    if not isinstance(cache_seqlens, Tensor):
        return torch.full((batch,), check_int("cache_seqlens", cache_seqlens), dtype=torch.int32, device=q.device)
    check_lengths("cache_seqlens", cache_seqlens, batch, "one length per sequence", q)
    lengths: Tensor = cache_seqlens.contiguous()
    return lengths


def prepare(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    k: Any,
    v: Any,
    cache_seqlens: Any,
    block_table: Any,
    num_splits: Any,
    mask: Any,
    causal: Any,
    window: Any,
    softcap: Any,
    alibi_slopes: Any,
    sinks: Any,
    scale: Any,
    layout: Any,
) -> KvcacheAttentionCall:
    """Check the arguments of :func:`kvcache_attention` and bring them into canonical form."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} must be 'bhsd' or 'bshd'")
    q, k, v = autocast(q, k, v)
    names = ("q", "k_cache", "v_cache")
    check_qkv(q, k_cache, v_cache, names, 4, "(B, H, S, D)" if layout == "bhsd" else "(B, S, H, D)")
    if torch.is_grad_enabled():
        _check_no_gradient(q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v, sinks=sinks, mask=mask)
    q = q if layout == "bhsd" else q.transpose(1, 2)
    k_cache = _canonical_cache(k_cache, "k_cache", layout, k is not None)
    v_cache = _canonical_cache(v_cache, "v_cache", layout, k is not None)
    check_heads(q, k_cache, v_cache, names, 1)
    if v_cache.shape[0] != k_cache.shape[0] or v_cache.shape[2] != k_cache.shape[2]:
        raise ValueError(
            f"v_cache of shape {shape(v_cache)} and k_cache of shape {shape(k_cache)} must differ in head dim only"
        )
    batch = q.shape[0]
    if block_table is None:
        if k_cache.shape[0] != batch:
            raise ValueError(f"k_cache has batch size {k_cache.shape[0]} but q has {batch}; they must be the same")
        limit = k_cache.shape[2]
    else:
        if not isinstance(block_table, Tensor) or block_table.dtype != torch.int32:
            given = block_table.dtype if isinstance(block_table, Tensor) else type(block_table).__name__
            raise TypeError(f"block_table must be an int32 torch.Tensor, got {given}")
        check_dense("block_table", block_table)
        if block_table.dim() != 2 or block_table.shape[0] != batch:
            raise ValueError(f"block_table of shape {shape(block_table)} must be (B, max_pages) with B = {batch}")
        check_device("block_table", block_table, "q", q)
        if k_cache.shape[2] == 0:
            raise ValueError("k_cache has pages of size 0; with block_table a page holds at least one position")
        block_table = block_table.contiguous()
        limit = k_cache.shape[2] * block_table.shape[1]
    k, v = _check_new(k, v, q, k_cache, v_cache, layout)
    lengths = _check_cache_seqlens(cache_seqlens, batch, limit, 0 if k is None else k.shape[2], q)
    num_splits = check_int("num_splits", num_splits)
    if num_splits < 0:
        raise ValueError(f"num_splits={num_splits} must not be negative; 0 lets the backend choose")
    features = check_features(
        q,
        batch,
        q.shape[1],
        q.shape[2],
        limit,
        mask=mask,
        causal=causal,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        scale=scale,
    )
    return KvcacheAttentionCall(
        unit_last_stride(q),
        k_cache,
        v_cache,
        k,
        v,
        lengths,
        block_table,
        features.mask,
        features.alibi_slopes,
        features.sinks,
        num_splits,
        features.causal,
        features.window_left,
        features.window_right,
        features.softcap,
        features.scale,
    )


OP = Op(
    name="kvcache_attention",
    call=KvcacheAttentionCall,
    outputs=("out", "lse"),
    allocate=allocate,
    cost=cost,
    prepare=prepare,
    rows=("q", "k", "v", "cache_seqlens", "block_table", "sinks"),
    mutates=("k_cache", "v_cache"),
    written=written,
    check_values=check_values,
)


def kvcache_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    k: Tensor | None = None,
    v: Tensor | None = None,
    cache_seqlens: Tensor | int | None = None,
    block_table: Tensor | None = None,
    num_splits: int = 0,
    mask: Tensor | None = None,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    layout: str = "bhsd",
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = OP(
        prepare(
            q,
            k_cache,
            v_cache,
            k=k,
            v=v,
            cache_seqlens=cache_seqlens,
            block_table=block_table,
            num_splits=num_splits,
            mask=mask,
            causal=causal,
            window=window,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            scale=scale,
            layout=layout,
        ),
        backend,
    )
    if layout == "bshd":
        out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


kvcache_attention.__doc__ = f"""Attention of a few new queries over a key/value cache, for decoding. Inference only.

    With k and v, the new keys and values are first written into the caches, in place, at cache_seqlens[b] and after;
    sequence b then has Sk = cache_seqlens[b] + Snew keys. Split-KV decoding follows "Flash-Decoding" (Dao et al. 2023),
    paging follows "PagedAttention" (Kwon et al. 2023).

    Args:
        q: (B, H, Sq, D); float32, float16, bfloat16 or float64. D is 1 to 256.
        k_cache, v_cache: (B, Hkv, Smax, D) and (B, Hkv, Smax, Dv); with block_table, pages
            (num_pages, Hkv, page_size, D) and (num_pages, Hkv, page_size, Dv). While k and v are written, they share no
            element with one another or with q, k and v, and none with itself, as torch has it for what it writes.
        k, v: new (B, Hkv, Snew, D) and (B, Hkv, Snew, Dv), or None.
        cache_seqlens: (B,) int32, or an int for all: how many positions are filled before k and v are added. None: all.
        block_table: (B, max_pages) int32; position j of sequence b lies in page block_table[b, j // page_size].
            Where several sequences write one row of a page, that of any of them is left there.
        num_splits: parts into which the key range is split and worked on side by side; 0 chooses. There are at most
            256, and no more than tiles of keys. A fixed number makes a sequence's result independent of the batch it is
            in.
        {OPTIONS_DOC.format(mask_shape="(B, H, Sq, capacity of the cache)").strip()}
        layout: "bhsd", or "bshd" when q, k, v, the output and the caches have positions before heads.
        return_lse: also return the log of the softmax denominators.

    Returns:
        out (B, H, Sq, Dv); with return_lse also lse (B, H, Sq), float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. Lengths and pages are checked on the CPU.
        BackendError: the requested backend cannot serve the call.
    """
