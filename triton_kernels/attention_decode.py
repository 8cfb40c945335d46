"""Around attention over a cache: writing new keys and values into it, and joining the parts of split keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_tile import block_and_plane, bounded
from .math import store


@triton.jit(do_not_specialize=["heads_kv", "seqlen_new", "capacity", "pages", "stride_table"])
def append(
    K_NEW, V_NEW, K, V, LENGTHS, TABLE,
    stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_nkb, stride_nkh, stride_nks, stride_nvb, stride_nvh, stride_nvs, stride_table,
    heads_kv, seqlen_new, head_dim, head_dim_v, capacity, page_size, pages,
    PAGED: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """New position t of sequence b goes to row LENGTHS[b] - seqlen_new + t: LENGTHS already counts it.

    Whatever LENGTHS and TABLE hold, only rows of the cache are written: nobody has looked at them.

    Program (block of new positions of a sequence and head).
    """
    block, plane, _blocks = block_and_plane(seqlen_new, BLOCK_S)
    b, head = (plane // heads_kv).to(tl.int64), (plane % heads_kv).to(tl.int64)
    t = block * BLOCK_S + tl.arange(0, BLOCK_S)
    row = bounded(tl.load(LENGTHS + b), 0, capacity) - seqlen_new + t
    used = (t < seqlen_new) & (row >= 0)
    if PAGED:
        page = bounded(tl.load(TABLE + b * stride_table + row // page_size, mask=used, other=0), 0, pages - 1)
        page = page.to(tl.int64)
        row = row % page_size
    else:
        page = b + t * 0
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    t, row = t.to(tl.int64), row.to(tl.int64)
    source = K_NEW + (b * stride_nkb + head * stride_nkh + t * stride_nks)[:, None] + d[None, :]
    target = K + (page * stride_kb + head * stride_kh + row * stride_ks)[:, None] + d[None, :]
    inside = used[:, None] & (d[None, :] < head_dim)
    tl.store(target, tl.load(source, mask=inside, other=0.0), mask=inside)
    source = V_NEW + (b * stride_nvb + head * stride_nvh + t * stride_nvs)[:, None] + dv[None, :]
    target = V + (page * stride_vb + head * stride_vh + row * stride_vs)[:, None] + dv[None, :]
    inside = used[:, None] & (dv[None, :] < head_dim_v)
    tl.store(target, tl.load(source, mask=inside, other=0.0), mask=inside)


@triton.jit(
    do_not_specialize=[
        "heads", "group", "seqlen_q", "splits", "rows_padded", "stride_lb", "stride_lh", "stride_ls",
    ]
)  # fmt: skip
def merge(
    PARTS, OUT, LSE, SINKS,
    stride_ob, stride_oh, stride_os, stride_lb, stride_lh, stride_ls,
    heads, group, seqlen_q, head_dim_v, splits, rows_padded, unit,
    HAS_SINKS: tl.constexpr, PACKED: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """out = sum over splits of O exp(m - top) / sum of l exp(m - top), BLOCK_SPLITS at a time with a running maximum:
    all of 256 at once would not fit into the registers. unit: what turns m into logits.

    Program (query of a sequence and query head).
    """
    i, plane, _blocks = block_and_plane(seqlen_q, 1)
    b, head = plane // heads, plane % heads
    row = i
    if PACKED:
        plane, row = b * (heads // group) + head // group, i * group + head % group
    dv = tl.arange(0, BLOCK_DV)
    inside = dv < head_dim_v
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    out = tl.zeros([BLOCK_DV], tl.float32)
    for start in tl.range(0, splits, BLOCK_SPLITS):
        part = start + tl.arange(0, BLOCK_SPLITS)
        used = part < splits
        at = PARTS + ((plane.to(tl.int64) * splits + part) * rows_padded + row) * (head_dim_v + 2)
        m = tl.load(at + head_dim_v, mask=used, other=float("-inf"))
        sums = tl.load(at + head_dim_v + 1, mask=used, other=0.0)
        o = tl.load(at[:, None] + dv[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        new = tl.maximum(top, tl.max(m, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        weight, rescale = tl.exp((m - base) * unit), tl.exp((top - base) * unit)
        total = total * rescale + tl.sum(sums * weight, 0)
        out = out * rescale + tl.sum(tl.where(weight[:, None] == 0.0, 0.0, o * weight[:, None]), 0)
        top = new
    top = top * unit
    if HAS_SINKS:
        # A key without a value.
        sink = tl.load(SINKS + head).to(tl.float32)
        joined = tl.maximum(top, sink)
        base = tl.where(joined == float("-inf"), 0.0, joined)
        rescale = tl.exp(top - base)
        total = total * rescale + tl.exp(sink - base)
        out = tl.where(rescale == 0.0, 0.0, out * rescale)
        top = joined
    empty = total == 0.0
    safe = tl.where(empty, 1.0, total)
    b, head, i = b.to(tl.int64), head.to(tl.int64), i.to(tl.int64)
    store(OUT + b * stride_ob + head * stride_oh + i * stride_os + dv, out / safe, inside)
    lse = tl.where(empty, float("-inf"), top + tl.log(safe))
    tl.store(LSE + b * stride_lb + head * stride_lh + i * stride_ls, lse)
