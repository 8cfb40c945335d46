"""Cases of kvcache_attention. Positions of the cache that hold nothing are NaN: no kernel may let them count."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Maker
from .attention import FEATURES, add_features, draw_values, place_heads, sizes_of

_LENGTHS = [37, 1, 100]


def make(m: Maker, *, spec: dict[str, Any]) -> dict[str, Any]:
    lengths = spec.get("lengths", _LENGTHS)
    new = spec.get("new", 0)
    batch, page_size = len(lengths), spec.get("page_size", 0)
    _, heads, heads_kv, _, _, head_dim, head_dim_v = sizes_of(spec)
    seqlen_q = spec.get("seqlen_q", 1)
    capacity = spec.get("capacity", max(lengths, default=0) + new + 3)
    pages = -(-capacity // page_size) if page_size else 0
    capacity = pages * page_size if page_size else capacity
    q, k, v = draw_values(
        m,
        spec.get("values", "normal"),
        (batch, heads, seqlen_q, head_dim),
        (batch, heads_kv, capacity, head_dim),
        (batch, heads_kv, capacity, head_dim_v),
    )
    for b, length in enumerate(lengths):
        k[b, :, length:] = math.nan
        v[b, :, length:] = math.nan
    memory = spec.get("memory", "bhsd")
    arguments: dict[str, Any] = {"q": place_heads(m, q, memory)}
    if page_size:
        # Pages in a random order, and three that belong to no sequence.
        pages_used = m.permutation(batch * pages + 3)[: batch * pages]
        table = torch.tensor(pages_used, dtype=torch.int32, device="cpu").view(batch, pages)
        caches = [_paged(t, table, page_size, batch * pages + 3) for t in (k, v)]
        arguments["block_table"] = m.place(table)
    else:
        caches = [k, v]
    arguments["k_cache"], arguments["v_cache"] = (place_heads(m, t, memory) for t in caches)
    if new:
        arguments["k"] = place_heads(m, m.draw_normal(batch, heads_kv, new, head_dim), memory)
        arguments["v"] = place_heads(m, m.draw_normal(batch, heads_kv, new, head_dim_v), memory)
    if spec.get("layout") == "bshd":
        for name in ("q", "k_cache", "v_cache", "k", "v"):
            if name in arguments:
                arguments[name] = arguments[name].transpose(1, 2)
    given = spec.get("given", "tensor")
    if given != "none":
        arguments["cache_seqlens"] = m.int32(lengths) if given == "tensor" else lengths[0]
    if "num_splits" in spec:
        arguments["num_splits"] = spec["num_splits"]
    add_features(m, arguments, spec, (batch, heads, seqlen_q, capacity))
    return arguments


def _paged(values: Tensor, table: Tensor, page_size: int, num_pages: int) -> Tensor:
    """(B, Hkv, capacity, D) -> (num_pages, Hkv, page_size, D), by the table."""
    batch, heads, _, head_dim = values.shape
    pages = values.new_full((num_pages, heads, page_size, head_dim), math.nan)
    split = values.view(batch, heads, table.shape[1], page_size, head_dim).transpose(1, 2)
    pages[table.long().flatten()] = split.flatten(0, 1)
    return pages


def case(name: str, dtype: torch.dtype, **spec: Any) -> Case:
    return Case(op="kvcache_attention", name=name, dtype=dtype, make=functools.partial(make, spec=spec), spec=spec)


def _specs() -> Iterator[tuple[str, dict[str, Any]]]:
    paged = {"page_size": 16}
    causal = {"causal": "bottom_right"}
    for name, kind in (("contiguous", {}), ("paged", paged)):
        yield name, {**kind, "lse": "value"}
        yield f"{name}_append", {**kind, "new": 1, **causal}
        yield f"{name}_append_more", {**kind, "new": 5, "seqlen_q": 5, **causal, "heads_kv": 2}
        yield f"{name}_prefill", {**kind, "new": 70, "seqlen_q": 70, "lengths": [0, 0], **causal}
        yield f"{name}_long", {**kind, "lengths": [600], "num_splits": 0}
        for splits in (1, 2, 3, 7, 64):
            yield (
                f"{name}_splits_{splits}",
                {**kind, "num_splits": splits, "seqlen_q": 2, "lse": "value", "heads_kv": 1},
            )
        yield f"{name}_layout_bshd", {**kind, "layout": "bshd", "memory": "bshd", "new": 2, "seqlen_q": 2, **causal}
        yield f"{name}_dropped_page", {**kind, "lengths": [16, 32], "capacity": 48}
        for name_of, feature in FEATURES.items():
            yield f"{name}_{name_of}", {**feature, **kind, "seqlen_q": 3, "num_splits": 2}
        for mask in ("bool bhqk", "bool b11k rows", "float bhqk", "float 1h1k", "float32 11qk inf"):
            yield f"{name}_mask_{mask.replace(' ', '_')}", {**kind, "mask": mask, "seqlen_q": 3, "new": 3}
        for d, dv in ((1, 1), (3, 3), (50, 50), (64, 64), (80, 48), (128, 128), (256, 256)):
            yield f"{name}_head_dim_{d}_{dv}", {**kind, "head_dim": d, "head_dim_v": dv, "new": 1, **causal}
    small = {"page_size": 4, "heads": 2, "heads_kv": 1, "head_dim": 16, "seqlen_q": 3, "new": 3, "num_splits": 2}
    yield "small_everything", {**FEATURES["everything"], **small, "lengths": [5, 2], "lse": "value"}
    for mask in ("bool bhqk rows", "float32 bhqk inf"):
        yield f"small_{mask.split()[-1]}", {**small, "lengths": [6], "mask": mask}
    for page_size in (1, 3, 64, 256):
        yield f"page_size_{page_size}", {"page_size": page_size, "new": 2, "seqlen_q": 2, **causal}
    yield "memory_misaligned", {"memory": "misaligned", "new": 1}
    yield "memory_padded", {"memory": "padded", "new": 1, "page_size": 8}
    yield "large_logits", {"values": "large", "scale": 1.0, "head_dim": 16, "num_splits": 3}
    yield "equal_keys", {"values": "equal", "lengths": [100]}
    yield "lengths_as_int", {"given": "int", "lengths": [40, 40]}
    yield "lengths_not_given", {"given": "none", "lengths": [40, 40], "capacity": 40}
    yield "empty_cache", {"lengths": [0, 5], "lse": "value"}
    yield "empty_cache_sinks", {"lengths": [0, 5], "lse": "value", "sinks": "same", "num_splits": 4}
    yield "empty_cache_append", {"lengths": [0, 0], "new": 3, "seqlen_q": 3, **causal}
    yield "empty_batch", {"lengths": [], "capacity": 8}
    yield "empty_queries", {"seqlen_q": 0, "new": 2}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, spec in _specs():
        yield case(name, dtype, **spec)
