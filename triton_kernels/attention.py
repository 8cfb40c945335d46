"""Attention forward: FlashAttention's tiling (Dao et al. 2022, 2023) over plain, packed, cached and paged sequences.

A program owns a block of query rows and walks over the keys that some of them see, tile by tile, with an online
softmax. Tiles that the causal bound or the window excludes are not visited; tiles that they do not cut take a loop
without the comparisons. With few rows (decoding) the query heads that share a key head are rows of one block, and the
keys are split over programs whose parts attention_decode.merge joins ("Flash-Decoding", Dao et al. 2023).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_pairs import attend_pairs, not_finite, zero_of
from .attention_tile import (
    PIECE,
    bounded,
    diagonal,
    kept_by_dropout,
    key_range,
    load_tile,
    logits,
    nth_block,
    sequence,
    signed,
    softmax_weights,
    unit,
    whole_tiles,
)
from .math import LOG2E, cast, dot, store


@triton.jit
def _load_keys(
    base, box, b, head, first, start, columns, stride, limit, width, table, page_size, pages, stride_page,
    PAGED: tl.constexpr, CHECK_ROWS: tl.constexpr, CHECK_WIDTH: tl.constexpr, TMA: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """As load_tile; with PAGED, key j is row j % page_size of page table[j // page_size]."""
    if PAGED:
        keys = start + tl.arange(0, BLOCK_N)
        inside = keys < limit
        page = bounded(tl.load(table + keys // page_size, mask=inside, other=0), 0, pages - 1).to(tl.int64)
        row = (keys % page_size).to(tl.int64)
        pointers = base + (page * stride_page + row * stride)[:, None] + columns[None, :]
        loaded = tl.load(pointers, mask=inside[:, None] & (columns[None, :] < width), other=0.0)
    else:
        loaded = load_tile(
            base, box, b, head, first, start, columns, stride, limit, width, CHECK_ROWS, CHECK_WIDTH, TMA, BLOCK_N
        )
    return loaded


@triton.jit
def _attend(
    q, q_rows, used, acc, m, total, i, begin, end, keys_base, values_base, k_box, v_box, box_b, box_head, first_k, mask,
    slope, plane,
    stride_ks, stride_vs, stride_kp, stride_vp, stride_mask_q, stride_mask_k, table, page_size, pages,
    seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, rng, threshold, head_dim, head_dim_v,
    SIGNED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PAGED: tl.constexpr,
    MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, CHECK_D: tl.constexpr, CHECK_DV: tl.constexpr,
    TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The block of rows over keys [begin, end), in tiles that start at `begin`. q_rows: where q's rows are; used: which
    of them there are."""
    # Wide rows of float32 would not fit into the registers: see dot_of_rows.
    IN_PIECES: tl.constexpr = q.dtype == tl.float32 and BLOCK_D > 128
    NATURAL: tl.constexpr = MASK == "float" or HAS_ALIBI
    factor = unit(scale, softcap, HAS_SOFTCAP, NATURAL)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    for start in tl.range(begin, end, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        s = tl.zeros([q.shape[0], BLOCK_N], tl.float32)
        if IN_PIECES:
            for first in tl.range(0, head_dim, PIECE):
                columns = first + tl.arange(0, PIECE)
                of_q = tl.load(
                    q_rows[:, None] + columns[None, :], mask=used[:, None] & (columns[None, :] < head_dim), other=0.0
                )
                of_k = _load_keys(
                    keys_base, k_box, box_b, box_head, first_k, start, columns, stride_ks, end, head_dim, table,
                    page_size, pages, stride_kp, PAGED, MASKED, True, False, BLOCK_N,
                )  # fmt: skip
                s = dot(of_q, tl.trans(of_k), s)
            if SIGNED:
                s = signed(s, sign)
        else:
            k = _load_keys(
                keys_base, k_box, box_b, box_head, first_k, start, d, stride_ks, end, head_dim, table, page_size,
                pages, stride_kp, PAGED, MASKED, CHECK_D, TMA, BLOCK_N,
            )  # fmt: skip
            s = dot(q, tl.trans(k), s)
        s, _dcap = logits(
            s, i[:, None], j[None, :], mask, stride_mask_q, stride_mask_k, slope, seqlen_q, tl.minimum(seqlen_k, end),
            shift, left, right, scale, softcap, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_LEFT, HAS_RIGHT, MASKED,
        )  # fmt: skip
        new = tl.maximum(m, tl.max(s, 1))
        # A row with no key so far subtracts 0: -inf - -inf would be NaN.
        base = tl.where(new == float("-inf"), 0.0, new)
        alpha = softmax_weights(m, base, factor)
        p = softmax_weights(s, base[:, None], factor)
        total = total * alpha + tl.sum(p, 1)
        m = new
        if HAS_DROPOUT:
            p = tl.where(kept_by_dropout(rng, i[:, None], start, plane, threshold, q.shape[0], BLOCK_N), p, 0.0)
        v = _load_keys(
            values_base, v_box, box_b, box_head, first_k, start, dv, stride_vs, end, head_dim_v, table, page_size,
            pages, stride_vp, PAGED, MASKED, CHECK_DV, TMA, BLOCK_N,
        )  # fmt: skip
        acc = dot(cast(p, v.dtype), v, acc * alpha[:, None])
    return acc, m, total


@triton.jit
def _place(
    program, heads, group, seqlen_q, seqlen_k, total_q, total_k, cu_q, cu_k, lengths_k,
    VARLEN: tl.constexpr, CACHE: tl.constexpr, PACKED: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What a program has: how many blocks there are, its plane, sequence and key head; where the sequence begins and
    how long it is; the first and last query of its block; and the block's rows, and the query and head of each."""
    block, plane, blocks = nth_block(program, seqlen_q * (group if PACKED else 1), BLOCK_M)
    if PACKED:
        heads_kv = heads // group
        b, kv_head = plane // heads_kv, plane % heads_kv
    else:
        b, kv_head = plane // heads, plane % heads // group
    block = blocks - 1 - block  # the last rows first: under a causal bound they take longest
    first_q, first_k, seqlen_q, seqlen_k = sequence(
        b, seqlen_q, seqlen_k, total_q, total_k, cu_q, cu_k, lengths_k, VARLEN, CACHE
    )
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    if PACKED:
        first, last = block * BLOCK_M // group, tl.minimum((block * BLOCK_M + BLOCK_M - 1) // group, seqlen_q - 1)
        i, head = rows // group, kv_head * group + rows % group
    else:
        first, last = block * BLOCK_M, tl.minimum(block * BLOCK_M + BLOCK_M, seqlen_q) - 1
        i, head = rows, plane % heads + rows * 0
    return blocks, plane, b, kv_head, first_q, first_k, seqlen_q, seqlen_k, first, last, rows, i, head


@triton.jit
def _keys_of(
    first, last, shift, seqlen_q, seqlen_k, left, right, splits,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """As key_range, of this program's part of the keys."""
    lo, hi, lo_all, hi_all = key_range(first, last, shift, seqlen_k, left, right, HAS_LEFT, HAS_RIGHT)
    if SPLIT:
        # The whole sequence's range is cut, at tile borders: independent of how rows are cut into blocks.
        whole_lo, whole_hi, _lo, _hi = key_range(0, seqlen_q - 1, shift, seqlen_k, left, right, HAS_LEFT, HAS_RIGHT)
        tiles = tl.cdiv(whole_hi - whole_lo, BLOCK_N)
        part = tl.program_id(1)
        lo = tl.maximum(lo, whole_lo + tiles * part // splits * BLOCK_N)
        hi = tl.minimum(hi, whole_lo + tiles * (part + 1) // splits * BLOCK_N)
    return lo, hi, lo_all, hi_all


@triton.jit
def _of_heads(base, b, head, stride_b, stride_h):
    """(rows, 1): where what each of the rows' heads has begins."""
    return (base + b.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h)[:, None]


@triton.jit
def _keys_at(
    b, kv_head, first_k, k, v, table,
    stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs, stride_table, VARLEN: tl.constexpr,
    PAGED: tl.constexpr,
):  # fmt: skip
    """Where a sequence's keys and values of a head begin, and its table of pages."""
    keys, values = k + kv_head.to(tl.int64) * stride_kh, v + kv_head.to(tl.int64) * stride_vh
    if PAGED:
        table = table + b.to(tl.int64) * stride_table
    else:
        batch = (b * 0).to(tl.int64) if VARLEN else b.to(tl.int64)
        keys, values = keys + batch * stride_kb + first_k * stride_ks, values + batch * stride_vb + first_k * stride_vs
        table = k  # which nobody reads
    return keys, values, table


# Numbers that change from call to call, for which nothing is compiled again. Of the others, strides and head dims, the
# compiler has to know whether they are multiples of 16, since that says how wide loads may be.
@triton.jit(
    do_not_specialize=[
        "heads", "group", "seqlen_q", "seqlen_k", "total_q", "total_k", "left", "right", "pages", "splits",
        "stride_slopes_b", "stride_slopes_h", "stride_table", "stride_lb", "stride_lh", "stride_ls", "stride_tb",
        "stride_th",
    ]
)  # fmt: skip
def attention_forward(
    Q, K, V, K_BOX, V_BOX, OUT, LSE, STATS, MASK_PTR, SLOPES, SINKS, RNG, CU_Q, CU_K, LENGTHS_K, TABLE, PARTS,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_ob, stride_oh, stride_os, stride_lb, stride_lh, stride_ls, stride_tb, stride_th,
    stride_mask_b, stride_mask_h, stride_mask_q, stride_mask_k, stride_slopes_b, stride_slopes_h, stride_table,
    heads, group, seqlen_q, seqlen_k, total_q, total_k, head_dim, head_dim_v, left, right, page_size, pages, splits,
    scale, sign, softcap, threshold, dropout_scale,
    MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, TOP_LEFT: tl.constexpr,
    VARLEN: tl.constexpr, CACHE: tl.constexpr, PAGED: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr,
    HAS_STATS: tl.constexpr, SIGNED: tl.constexpr, TMA: tl.constexpr, CHECK_D: tl.constexpr, CHECK_DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Strides of STATS (t) count rows, of two numbers each.

    With TMA, K_BOX and V_BOX describe K and V: see descriptor.py. Of packed and cached sequences the tiles at a
    border are loaded by pointers: a box would have rows of the next sequence, or unwritten ones, whatever they are.

    scale is positive; with SIGNED q is multiplied by `sign`, which is -1 or 0, first.

    Program (block of rows of a sequence and head, split). With PACKED the head is a key head, and row r is query
    r // group of the group's head r % group. With SPLIT the parts go to PARTS: see attention_decode.merge."""
    EXCLUDES: tl.constexpr = HAS_LEFT or HAS_RIGHT or HAS_DROPOUT or MASK != ""
    longest_q, longest_k = seqlen_q, seqlen_k
    blocks, plane, b, kv_head, first_q, first_k, seqlen_q, seqlen_k, first, last, rows, i, head = _place(
        tl.program_id(0), heads, group, longest_q, longest_k, total_q, total_k, CU_Q, CU_K, LENGTHS_K,
        VARLEN, CACHE, PACKED, BLOCK_M,
    )  # fmt: skip
    if first >= seqlen_q:
        return
    batch = (b * 0).to(tl.int64) if VARLEN else b.to(tl.int64)
    used = i < seqlen_q
    at = (first_q + i.to(tl.int64)), head.to(tl.int64)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    q_rows = Q + batch * stride_qb + at[0] * stride_qs + at[1] * stride_qh
    q = tl.load(q_rows[:, None] + d[None, :], mask=used[:, None] & (d[None, :] < head_dim), other=0.0)
    if SIGNED:
        q = cast(q.to(tl.float32) * sign, q.dtype)
    mask, slope = MASK_PTR, 0.0
    if MASK != "":
        mask = _of_heads(MASK_PTR, b, head, stride_mask_b, stride_mask_h)
    if HAS_ALIBI:
        slope = tl.load(_of_heads(SLOPES, b, head, stride_slopes_b, stride_slopes_h))
    dropout_plane = (b * heads + head)[:, None]

    shift = diagonal(seqlen_q, seqlen_k, TOP_LEFT)
    lo, hi, lo_all, hi_all = _keys_of(
        first, last, shift, seqlen_q, seqlen_k, left, right, splits, HAS_LEFT, HAS_RIGHT, SPLIT, BLOCK_N
    )
    begin_whole, end_whole = whole_tiles(lo, hi, lo_all, hi_all, BLOCK_N, HAS_LEFT)

    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    keys, values, table = _keys_at(
        b, kv_head, first_k, K, V, TABLE, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
        stride_table, VARLEN, PAGED,
    )  # fmt: skip
    # Tiles that the window cuts, whole ones, and those that the causal bound or the length cuts.
    for part in tl.static_range(0 if HAS_LEFT else 1, 3):
        begin = lo if part == 0 else (begin_whole if part == 1 else end_whole)
        end = begin_whole if part == 0 else (end_whole if part == 1 else hi)
        acc, m, total = _attend(
            q, q_rows, used, acc, m, total, i, begin, end, keys, values, K_BOX, V_BOX, batch.to(tl.int32), kv_head,
            first_k.to(tl.int32), mask, slope, dropout_plane,
            stride_ks, stride_vs, stride_kb, stride_vb, stride_mask_q, stride_mask_k, table, page_size, pages,
            seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, RNG, threshold, head_dim, head_dim_v,
            SIGNED, BLOCK_N, BLOCK_D, BLOCK_DV, PAGED, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT,
            CHECK_D, CHECK_DV, TMA and (part == 1 or not (VARLEN or CACHE)), part != 1,
        )  # fmt: skip

    factor = unit(scale, softcap, HAS_SOFTCAP, MASK == "float" or HAS_ALIBI)
    if EXCLUDES:
        count = not_finite(acc)
        if count > 0:
            # All of it anew, from the program's number.
            _blocks, _plane, b, kv_head, first_q, first_k, length_q, length_k, first, last, _rows, i, head = _place(
                tl.program_id(0) + zero_of(count), heads, group, longest_q, longest_k, total_q, total_k, CU_Q, CU_K,
                LENGTHS_K, VARLEN, CACHE, PACKED, BLOCK_M,
            )  # fmt: skip
            shift = diagonal(length_q, length_k, TOP_LEFT)
            lo, hi, _lo, _hi = _keys_of(
                first, last, shift, length_q, length_k, left, right, splits, HAS_LEFT, HAS_RIGHT, SPLIT, BLOCK_N
            )
            keys, values, table = _keys_at(
                b, kv_head, first_k, K, V, TABLE, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
                stride_table, VARLEN, PAGED,
            )  # fmt: skip
            batch = (b * 0).to(tl.int64) if VARLEN else b.to(tl.int64)
            q_rows = Q + batch * stride_qb + (first_q + i.to(tl.int64)) * stride_qs + head.to(tl.int64) * stride_qh
            mask, slope = MASK_PTR, 0.0
            if MASK != "":
                mask = _of_heads(MASK_PTR, b, head, stride_mask_b, stride_mask_h)
            if HAS_ALIBI:
                slope = tl.load(_of_heads(SLOPES, b, head, stride_slopes_b, stride_slopes_h))
            acc = attend_pairs(
                q_rows, i < length_q, i, m, lo, hi, keys, values, mask, slope, (b * heads + head)[:, None], stride_ks,
                stride_vs, stride_kb, stride_vb, stride_mask_q, stride_mask_k, table, page_size, pages, length_q,
                length_k, shift, left, right, scale, sign, softcap, RNG, threshold, head_dim, head_dim_v, factor,
                SIGNED, BLOCK_DV, PAGED, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT,
            )  # fmt: skip

    if SPLIT:
        # [sequence and head][split][row][Dv + 2]: O, the maximum, the sum.
        number = (plane.to(tl.int64) * splits + tl.program_id(1)) * blocks * BLOCK_M
        out = PARTS + (number + rows) * (head_dim_v + 2)
        tl.store(out[:, None] + dv[None, :], acc, mask=used[:, None] & (dv[None, :] < head_dim_v))
        tl.store(out + head_dim_v, m, mask=used)
        tl.store(out + head_dim_v + 1, total, mask=used)
        return
    # From here on in logits. The sink is a key without a value: `inverse` is what O and the weights are multiplied by.
    top = m * factor
    inverse = 1.0
    if HAS_SINKS:
        sink = tl.load(SINKS + head, mask=used, other=0.0).to(tl.float32)
        joined = tl.maximum(top, sink)
        base = tl.where(joined == float("-inf"), 0.0, joined)
        inverse = tl.exp2((top - base) * LOG2E)
        total = total * inverse + tl.exp2((sink - base) * LOG2E)
        top = joined
    empty = total == 0.0
    inverse = tl.where(empty, 0.0, inverse / tl.where(empty, 1.0, total))
    out = acc * (inverse * dropout_scale)[:, None]
    if EXCLUDES:
        out = tl.where(inverse[:, None] == 0.0, 0.0, out)  # whatever a key of no weight holds
    o_rows = OUT + batch * stride_ob + at[0] * stride_os + at[1] * stride_oh
    store(o_rows[:, None] + dv[None, :], out, used[:, None] & (dv[None, :] < head_dim_v))
    lse = tl.where(empty, float("-inf"), top + tl.log(tl.where(empty, 1.0, total)))
    tl.store(LSE + batch * stride_lb + at[0] * stride_ls + at[1] * stride_lh, lse, mask=used)
    if HAS_STATS:
        # Of a row without keys max = +inf, so that every weight is 0. Where the sum is NaN, so is it, in which scores
        # of NaN have no part.
        stats = STATS + (batch * stride_tb + at[0] + at[1] * stride_th) * 2
        m = tl.where(m == float("-inf"), float("inf"), m)
        tl.store(stats, tl.where(inverse == inverse, m, inverse), mask=used)
        tl.store(stats + 1, inverse, mask=used)
