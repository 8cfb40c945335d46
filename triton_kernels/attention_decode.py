"""Around attention over a cache: writing new keys and values into it, and joining the parts of split keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .math import store


@triton.jit
def append(
    K_NEW, V_NEW, K, V, LENGTHS, TABLE,
    stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_nkb, stride_nkh, stride_nks, stride_nvb, stride_nvh, stride_nvs, stride_table,
    heads_kv, seqlen_new, head_dim, head_dim_v, page_size,
    PAGED: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """New position t of sequence b goes to row LENGTHS[b] - seqlen_new + t: LENGTHS already counts it.

    Program (block of new positions, sequence and head).
    """
    b, head = tl.program_id(1) // heads_kv, (tl.program_id(1) % heads_kv).to(tl.int64)
    t = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    used = t < seqlen_new
    row = tl.load(LENGTHS + b) - seqlen_new + t
    if PAGED:
        page = tl.load(TABLE + b * stride_table + row // page_size, mask=used, other=0).to(tl.int64)
        row = row % page_size
    else:
        page = b.to(tl.int64) + t * 0
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    t = t.to(tl.int64)
    source = K_NEW + (b.to(tl.int64) * stride_nkb + head * stride_nkh + t * stride_nks)[:, None] + d[None, :]
    target = K + (page * stride_kb + head * stride_kh + row * stride_ks)[:, None] + d[None, :]
    inside = used[:, None] & (d[None, :] < head_dim)
    tl.store(target, tl.load(source, mask=inside, other=0.0), mask=inside)
    source = V_NEW + (b.to(tl.int64) * stride_nvb + head * stride_nvh + t * stride_nvs)[:, None] + dv[None, :]
    target = V + (page * stride_vb + head * stride_vh + row * stride_vs)[:, None] + dv[None, :]
    inside = used[:, None] & (dv[None, :] < head_dim_v)
    tl.store(target, tl.load(source, mask=inside, other=0.0), mask=inside)


@triton.jit
def merge(
    PARTS, OUT, LSE, SINKS,
    stride_ob, stride_oh, stride_os, stride_lb, stride_lh, stride_ls,
    heads, group, seqlen_q, head_dim_v, splits, rows_padded,
    HAS_SINKS: tl.constexpr, PACKED: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """out = sum over splits of O exp(m - top) / sum of l exp(m - top). Program (query, sequence and query head)."""
    i = tl.program_id(0)
    b, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    if PACKED:
        plane, row = b * (heads // group) + head // group, i * group + head % group
    else:
        plane, row = tl.program_id(1), i
    part = tl.arange(0, BLOCK_SPLITS)
    dv = tl.arange(0, BLOCK_DV)
    at = PARTS + ((plane.to(tl.int64) * splits + part) * rows_padded + row) * (head_dim_v + 2)
    used = part < splits
    m = tl.load(at + head_dim_v, mask=used, other=float("-inf"))
    sums = tl.load(at + head_dim_v + 1, mask=used, other=0.0)
    o = tl.load(at[:, None] + dv[None, :], mask=used[:, None] & (dv[None, :] < head_dim_v), other=0.0)
    top = tl.max(m, 0)
    sink = top
    if HAS_SINKS:
        sink = tl.load(SINKS + head).to(tl.float32)
        top = tl.maximum(top, sink)
    base = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp(m - base)
    total = tl.sum(sums * weight, 0)
    if HAS_SINKS:
        total += tl.exp(sink - base)
    empty = total == 0.0
    safe = tl.where(empty, 1.0, total)
    out = tl.sum(o * weight[:, None], 0) / safe
    b, head, i = b.to(tl.int64), head.to(tl.int64), i.to(tl.int64)
    store(OUT + b * stride_ob + head * stride_oh + i * stride_os + dv, out, dv < head_dim_v)
    lse = tl.where(empty, float("-inf"), top + tl.log(safe))
    tl.store(LSE + b * stride_lb + head * stride_lh + i * stride_ls, lse)
