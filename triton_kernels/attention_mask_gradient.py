"""The gradient of a float mask: dS with respect to the logits, summed over whatever the mask is broadcast along.

A program owns a tile of the mask's own elements and walks over everything that is added into it, computing dS again, so
nothing is shared between programs and every sum has one order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_backward import rows_against_keys
from .attention_tile import block_and_plane, diagonal, key_range, load_rows, load_terms, sequence
from .math import wide


@triton.jit(
    do_not_specialize=[
        "batches", "heads", "group", "mask_heads", "mask_q", "mask_k", "seqlen_q", "seqlen_k", "total_q", "total_k",
        "left", "right", "stride_slopes_b", "stride_slopes_h", "stride_eb", "stride_eh",
    ]
)  # fmt: skip  # see attention_forward
def attention_backward_mask(
    Q, K, V, DOUT, TERMS, DMASK, MASK_PTR, SLOPES, RNG, CU_Q, CU_K,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_db, stride_dh, stride_ds, stride_eb, stride_eh,
    stride_mask_b, stride_mask_h, stride_mask_q, stride_mask_k, stride_slopes_b, stride_slopes_h,
    batches, heads, group, mask_heads, mask_q, mask_k, seqlen_q, seqlen_k, total_q, total_k, head_dim, head_dim_v,
    left, right,
    scale, sign, softcap, threshold, dropout_scale,
    HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, TOP_LEFT: tl.constexpr, VARLEN: tl.constexpr,
    ALL_BATCHES: tl.constexpr, ALL_HEADS: tl.constexpr, ALL_QUERIES: tl.constexpr, ALL_KEYS: tl.constexpr,
    SIGNED: tl.constexpr, CHECK_D: tl.constexpr, CHECK_DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """ALL_*: the mask is broadcast along it. DMASK is contiguous.

    Program (tile of keys, tile of queries of a mask plane).
    """
    tile_k, row_of_tiles, _tiles = block_and_plane(mask_k, BLOCK_N)
    tiles_q = tl.cdiv(mask_q, BLOCK_M)
    tile_q, plane = row_of_tiles % tiles_q, row_of_tiles // tiles_q
    b_begin, b_end = plane // mask_heads, plane // mask_heads + 1
    if ALL_BATCHES:
        b_begin, b_end = 0, batches
    h_begin, h_end = plane % mask_heads, plane % mask_heads + 1
    if ALL_HEADS:
        h_begin, h_end = 0, heads
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for b in tl.range(b_begin, b_end):
        first_q, first_k, len_q, len_k = sequence(
            b, seqlen_q, seqlen_k, total_q, total_k, CU_Q, CU_K, CU_K, VARLEN, False
        )
        batch = wide(b)
        if VARLEN:
            batch = batch * 0
        shift = diagonal(len_q, len_k, TOP_LEFT)
        q_begin, q_end = tile_q * BLOCK_M, tl.minimum(tile_q * BLOCK_M + 1, len_q)
        if ALL_QUERIES:
            q_begin, q_end = 0, len_q
        k_begin, k_end = tile_k * BLOCK_N, tl.minimum(tile_k * BLOCK_N + 1, len_k)
        if ALL_KEYS:
            k_begin, k_end = 0, len_k
        for head in tl.range(h_begin, h_end):
            h, kv = wide(head), wide(head // group)
            queries = Q + batch * stride_qb + h * stride_qh + first_q * stride_qs
            gradients = DOUT + batch * stride_db + h * stride_dh + first_q * stride_ds
            keys = K + batch * stride_kb + kv * stride_kh + first_k * stride_ks
            values = V + batch * stride_vb + kv * stride_vh + first_k * stride_vs
            mask = MASK_PTR + wide(b) * stride_mask_b + h * stride_mask_h
            slope = 0.0
            if HAS_ALIBI:
                slope = tl.load(SLOPES + wide(b) * stride_slopes_b + h * stride_slopes_h)
            for q_start in tl.range(q_begin, q_end, BLOCK_M):
                i = q_start + tl.arange(0, BLOCK_M)
                terms = TERMS + (batch * stride_eb + h * stride_eh + first_q) * 4
                m, inverse, delta = load_terms(terms, i, len_q)
                q = load_rows(queries, i, d, stride_qs, len_q, head_dim)
                dout = load_rows(gradients, i, dv, stride_ds, len_q, head_dim_v)
                last = tl.minimum(q_start + BLOCK_M, len_q) - 1
                lo, hi, _lo, _hi = key_range(q_start, last, shift, len_k, left, right, HAS_LEFT, HAS_RIGHT)
                for k_start in tl.range(k_begin, k_end, BLOCK_N):
                    if (k_start < hi) & (k_start + BLOCK_N > lo):
                        _k, ds, _delta = rows_against_keys(
                            q, dout, queries, gradients, keys, values, None, None, 0, 0, 0,
                            stride_qs, stride_ds, stride_ks, stride_vs, head_dim, head_dim_v,
                            i, k_start, m, inverse, delta, mask, slope, b * heads + head, stride_mask_q, stride_mask_k,
                            len_q, len_k, shift, left, right, scale, sign, softcap, RNG, threshold, dropout_scale,
                            SIGNED, "float", HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT, CHECK_D,
                            CHECK_DV, True, False, True, -1, BLOCK_N,
                        )  # fmt: skip
                        total += ds
    base = DMASK + plane.to(tl.int64) * mask_q * mask_k
    i = tile_q * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile_k * BLOCK_N + tl.arange(0, BLOCK_N)
    if ALL_QUERIES and ALL_KEYS:
        tl.store(base, tl.sum(tl.sum(total, 1), 0))
    elif ALL_QUERIES:
        tl.store(base + j, tl.sum(total, 0), mask=j < mask_k)
    elif ALL_KEYS:
        tl.store(base + i, tl.sum(total, 1), mask=i < mask_q)
    else:
        tl.store(
            base + i.to(tl.int64)[:, None] * mask_k + j[None, :],
            total,
            mask=(i[:, None] < mask_q) & (j[None, :] < mask_k),
        )
