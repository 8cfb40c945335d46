"""Attention backward: dQ by blocks of rows, dK and dV by blocks of keys, each rebuilding the weights from the row
statistics of the forward (FlashAttention-2, Dao 2023). No atomics: every sum has one order, so that gradients are equal
over reruns whether that was asked for or not.

    P = exp(S - max) / sum      dS = P * (dP - delta)      delta = rowsum(dO * O) - dlse
    dQ = scale dS K             dK = scale dS^T Q          dV = P^T dO

delta comes from the rounded O, so where one key has nearly all the weight dP - delta is mostly rounding; and dQ has an
error of delta's times the keys' mean, which stands out in a narrow head, whose weights lean on each of its dims. A
block of rows whose keys fit in one tile, or of a narrow head (EXACT), takes delta = sum of P dP - dlse instead, which
has dP's own rounding in it. So dQ comes first, and leaves delta to the rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_pairs import keys_by_pairs, not_finite, rows_by_pairs
from .attention_tile import (
    block_and_plane,
    diagonal,
    dot_of_rows,
    kept_by_dropout,
    key_range,
    load_rows,
    load_statistics,
    load_terms,
    load_tile,
    logits,
    query_range,
    sequence,
    signed,
    softmax_weights,
    unit,
    whole_tiles,
)
from .math import cast, dot, store, wide


@triton.jit
def weights_and_gradient(
    s, dp, kept, i, j, m, inverse, delta, mask, slope,
    stride_mask_q, stride_mask_k, seqlen_q, seqlen_k, shift, left, right, scale, softcap, dropout_scale,
    MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, OF_LOGITS: tl.constexpr, MASKED: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """From S and dP of a tile, and what dropout keeps of it: P after dropout (without its scale), and dS, with respect
    to scale * q . k, or with OF_LOGITS to the logits. With AXIS >= 0 the tile has all keys of its rows along that axis,
    and `delta` is dlse."""
    NATURAL: tl.constexpr = MASK == "float" or HAS_ALIBI
    s, dcap = logits(
        s, i, j, mask, stride_mask_q, stride_mask_k, slope, seqlen_q, seqlen_k, shift, left, right, scale, softcap,
        MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_LEFT, HAS_RIGHT, MASKED,
    )  # fmt: skip
    # The scores may have been summed in another order than the forward's, and the largest round to above its maximum.
    p = softmax_weights(tl.minimum(s, m), m, unit(scale, softcap, HAS_SOFTCAP, NATURAL)) * inverse
    if OF_LOGITS:  # summed as they are
        seen = s != float("-inf")
        p, dp = tl.where(seen, p, 0.0), tl.where(seen, dp, 0.0)
    dropped = p
    if HAS_DROPOUT:
        dropped = tl.where(kept, p, 0.0)
        dp = tl.where(kept, dp * dropout_scale, 0.0)
    if AXIS >= 0:
        delta = tl.expand_dims(tl.sum(p * dp, AXIS), AXIS) - delta
    ds = p * (dp - delta)
    if OF_LOGITS:
        ds = tl.where(seen, ds, 0.0)
    if HAS_SOFTCAP and not OF_LOGITS:
        ds = ds * dcap
    return dropped, ds, delta


@triton.jit
def rows_against_keys(
    q, dout, queries, gradients, keys, values, k_box, v_box, box_b, box_head, first_k,
    stride_qs, stride_ds, stride_ks, stride_vs, head_dim, head_dim_v,
    i, start, m, inverse, delta, mask, slope, plane,
    stride_mask_q, stride_mask_k, seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, rng, threshold,
    dropout_scale,
    SIGNED: tl.constexpr,
    MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, CHECK_D: tl.constexpr, CHECK_DV: tl.constexpr,
    OF_LOGITS: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr, AXIS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile [rows, keys from `start` on]: its keys, and dS and delta as weights_and_gradient has them. q and dout are
    rows i of queries and gradients."""
    d, dv = tl.arange(0, q.shape[1]), tl.arange(0, dout.shape[1])
    k = load_tile(
        keys, k_box, box_b, box_head, first_k, start, d, stride_ks, seqlen_k, head_dim, MASKED, CHECK_D, TMA, BLOCK_N
    )
    v = load_tile(
        values, v_box, box_b, box_head, first_k, start, dv, stride_vs, seqlen_k, head_dim_v, MASKED, CHECK_DV, TMA,
        BLOCK_N,
    )  # fmt: skip
    j = start + tl.arange(0, BLOCK_N)
    s = dot_of_rows(q, k, queries, i, stride_qs, seqlen_q, keys, j, stride_ks, seqlen_k, head_dim)
    dp = dot_of_rows(dout, v, gradients, i, stride_ds, seqlen_q, values, j, stride_vs, seqlen_k, head_dim_v)
    if SIGNED:
        s = signed(s, sign)
    kept = True
    if HAS_DROPOUT:
        kept = kept_by_dropout(rng, i[:, None], start, plane, threshold, q.shape[0], BLOCK_N)
    _p, ds, delta = weights_and_gradient(
        s, dp, kept, i[:, None], j[None, :], m[:, None], inverse[:, None], delta[:, None], mask, slope,
        stride_mask_q, stride_mask_k, seqlen_q, seqlen_k, shift, left, right, scale, softcap,
        dropout_scale, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT, OF_LOGITS, MASKED, AXIS,
    )  # fmt: skip
    return k, ds, tl.reshape(delta, [q.shape[0]])


@triton.jit(
    do_not_specialize=[
        "heads", "group", "seqlen_q", "seqlen_k", "total_q", "total_k", "left", "right", "stride_slopes_b",
        "stride_slopes_h", "stride_lb", "stride_lh", "stride_ls", "stride_tb", "stride_th", "stride_eb", "stride_eh",
    ]
)  # fmt: skip  # see attention_forward
def attention_backward_rows(
    Q, K, V, K_BOX, V_BOX, OUT, DOUT, DLSE, STATS, TERMS, DQ, MASK_PTR, SLOPES, RNG, CU_Q, CU_K,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_ob, stride_oh, stride_os, stride_db, stride_dh, stride_ds, stride_gb, stride_gh, stride_gs,
    stride_lb, stride_lh, stride_ls, stride_tb, stride_th, stride_eb, stride_eh,
    stride_mask_b, stride_mask_h, stride_mask_q, stride_mask_k, stride_slopes_b, stride_slopes_h,
    heads, group, seqlen_q, seqlen_k, total_q, total_k, head_dim, head_dim_v, left, right,
    scale, sign, softcap, threshold, dropout_scale,
    MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, TOP_LEFT: tl.constexpr, VARLEN: tl.constexpr,
    HAS_DLSE: tl.constexpr, WANT_DQ: tl.constexpr, EXACT: tl.constexpr, SIGNED: tl.constexpr, TMA: tl.constexpr,
    CHECK_D: tl.constexpr, CHECK_DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dQ, and the rows' maximum, 1 / sum and delta to TERMS, (..., rows, 4). Strides: d dOut, g dQ, l dlse, t the
    statistics, e TERMS, these two in rows. TMA as in attention_forward.

    Program (block of rows of a sequence and head)."""
    block, plane, blocks = block_and_plane(seqlen_q, BLOCK_M)
    block = blocks - 1 - block
    b, head = plane // heads, plane % heads
    first_q, first_k, seqlen_q, seqlen_k = sequence(
        b, seqlen_q, seqlen_k, total_q, total_k, CU_Q, CU_K, CU_K, VARLEN, False
    )
    first, last = block * BLOCK_M, tl.minimum(block * BLOCK_M + BLOCK_M, seqlen_q) - 1
    if first >= seqlen_q:
        return
    i = first + tl.arange(0, BLOCK_M)
    used = i < seqlen_q
    batch = b.to(tl.int64)
    if VARLEN:
        batch = batch * 0
    h, kv_head, at = head.to(tl.int64), (head // group).to(tl.int64), first_q + i.to(tl.int64)
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    out = load_rows(
        OUT + batch * stride_ob + h * stride_oh + first_q * stride_os, i, dv, stride_os, seqlen_q, head_dim_v
    )
    queries = Q + batch * stride_qb + h * stride_qh + first_q * stride_qs
    gradients = DOUT + batch * stride_db + h * stride_dh + first_q * stride_ds
    dout = load_rows(gradients, i, dv, stride_ds, seqlen_q, head_dim_v)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    dlse = tl.zeros([BLOCK_M], tl.float32)
    if HAS_DLSE:
        dlse = tl.load(DLSE + batch * stride_lb + h * stride_lh + at * stride_ls, mask=used, other=0.0)
    delta -= dlse
    shift = diagonal(seqlen_q, seqlen_k, TOP_LEFT)
    lo, hi, lo_all, hi_all = key_range(first, last, shift, seqlen_k, left, right, HAS_LEFT, HAS_RIGHT)
    stats = STATS + (batch * stride_tb + h * stride_th + at) * 2
    m, inverse = load_statistics(stats, used)
    q = load_rows(queries, i, d, stride_qs, seqlen_q, head_dim)
    mask = MASK_PTR
    if MASK != "":
        mask = MASK_PTR + b.to(tl.int64) * stride_mask_b + h * stride_mask_h
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(SLOPES + b.to(tl.int64) * stride_slopes_b + h * stride_slopes_h)
    keys = K + batch * stride_kb + kv_head * stride_kh + first_k * stride_ks
    values = V + batch * stride_vb + kv_head * stride_vh + first_k * stride_vs
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    box_b, box_head, box_row = batch.to(tl.int32), head // group, first_k.to(tl.int32)
    if hi - lo <= BLOCK_N:
        k, ds, delta = rows_against_keys(
            q, dout, queries, gradients, keys, values, K_BOX, V_BOX, box_b, box_head, box_row,
            stride_qs, stride_ds, stride_ks, stride_vs, head_dim, head_dim_v,
            i, lo, m, inverse, dlse, mask, slope, plane, stride_mask_q, stride_mask_k, seqlen_q, seqlen_k, shift,
            left, right, scale, sign, softcap, RNG, threshold, dropout_scale, SIGNED, MASK, HAS_ALIBI, HAS_SOFTCAP,
            HAS_DROPOUT, HAS_LEFT, HAS_RIGHT, CHECK_D, CHECK_DV, False, False, True, 1, BLOCK_N,
        )  # fmt: skip
        dq = dot(cast(ds, k.dtype), k, dq)
    else:
        if EXACT:
            delta = -dlse
            for start in tl.range(lo, hi, BLOCK_N):
                _k, _ds, products = rows_against_keys(
                    q, dout, queries, gradients, keys, values, K_BOX, V_BOX, box_b, box_head, box_row,
                    stride_qs, stride_ds, stride_ks, stride_vs, head_dim, head_dim_v,
                    i, start, m, inverse, tl.zeros([BLOCK_M], tl.float32), mask, slope, plane,
                    stride_mask_q, stride_mask_k, seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, RNG,
                    threshold, dropout_scale, SIGNED, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT,
                    CHECK_D, CHECK_DV, False, False, True, 1, BLOCK_N,
                )  # fmt: skip
                delta += products
        if WANT_DQ:
            begin_whole, end_whole = whole_tiles(lo, hi, lo_all, hi_all, BLOCK_N, HAS_LEFT)
            for part in tl.static_range(0 if HAS_LEFT else 1, 3):
                begin = lo if part == 0 else (begin_whole if part == 1 else end_whole)
                end = begin_whole if part == 0 else (end_whole if part == 1 else hi)
                for start in tl.range(begin, end, BLOCK_N):
                    k, ds, _delta = rows_against_keys(
                        q, dout, queries, gradients, keys, values, K_BOX, V_BOX, box_b, box_head, box_row,
                        stride_qs, stride_ds, stride_ks, stride_vs, head_dim, head_dim_v,
                        i, start, m, inverse, delta, mask, slope, plane, stride_mask_q, stride_mask_k,
                        seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, RNG, threshold, dropout_scale,
                        SIGNED, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT, CHECK_D, CHECK_DV,
                        False, TMA and (part == 1 or not VARLEN), part != 1, -1, BLOCK_N,
                    )  # fmt: skip
                    dq = dot(cast(ds, k.dtype), k, dq)
    EXCLUDES: tl.constexpr = HAS_LEFT or HAS_RIGHT or HAS_DROPOUT or MASK != ""
    if EXCLUDES:
        count = not_finite(dq)
        if count > 0:
            factor = unit(scale, softcap, HAS_SOFTCAP, MASK == "float" or HAS_ALIBI)
            for _round in tl.range(0, 2, num_stages=1):  # the first one for delta alone
                dq, products = rows_by_pairs(
                    queries, gradients, used, i, lo, hi, keys, values, m, inverse, delta, mask, slope, plane,
                    stride_qs, stride_ds, stride_ks, stride_vs, stride_mask_q, stride_mask_k,
                    seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, RNG, threshold, dropout_scale,
                    head_dim, head_dim_v, factor,
                    SIGNED, BLOCK_D, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT,
                )  # fmt: skip
                delta = products - dlse
    delta = tl.where(m == float("inf"), -dlse, delta)  # without a key out is 0, whatever dout is
    terms = TERMS + (batch * stride_eb + h * stride_eh + at) * 4
    tl.store(terms, m, mask=used)
    tl.store(terms + 1, inverse, mask=used)
    tl.store(terms + 2, delta, mask=used)
    if WANT_DQ:
        if SIGNED:
            scale = scale * sign
        rows = DQ + batch * stride_gb + h * stride_gh + at * stride_gs
        inside = used[:, None] & (d[None, :] < head_dim)
        store(rows[:, None] + d[None, :], dq * scale, inside)


@triton.jit(
    do_not_specialize=[
        "heads", "group", "seqlen_q", "seqlen_k", "total_q", "total_k", "left", "right", "stride_slopes_b",
        "stride_slopes_h", "stride_eb", "stride_eh",
    ]
)  # fmt: skip  # see attention_forward
def attention_backward_keys(
    Q, K, V, Q_BOX, DOUT_BOX, DOUT, TERMS, DK, DV, MASK_PTR, SLOPES, RNG, CU_Q, CU_K,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_db, stride_dh, stride_ds, stride_gkb, stride_gkh, stride_gks, stride_gvb, stride_gvh, stride_gvs,
    stride_eb, stride_eh,
    stride_mask_b, stride_mask_h, stride_mask_q, stride_mask_k, stride_slopes_b, stride_slopes_h,
    heads, group, seqlen_q, seqlen_k, total_q, total_k, head_dim, head_dim_v, left, right,
    scale, sign, softcap, threshold, dropout_scale,
    MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, TOP_LEFT: tl.constexpr, VARLEN: tl.constexpr,
    WANT_DK: tl.constexpr, WANT_DV: tl.constexpr, SIGNED: tl.constexpr, TMA: tl.constexpr,
    CHECK_D: tl.constexpr, CHECK_DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dK and dV, summed over the query heads of a group, on transposed tiles [keys, rows]. Program (block of keys
    of a sequence and key head)."""
    heads_kv = heads // group
    block, plane, _blocks = block_and_plane(seqlen_k, BLOCK_N)
    b, kv_head = plane // heads_kv, plane % heads_kv
    first_q, first_k, seqlen_q, seqlen_k = sequence(
        b, seqlen_q, seqlen_k, total_q, total_k, CU_Q, CU_K, CU_K, VARLEN, False
    )
    first, last = block * BLOCK_N, tl.minimum(block * BLOCK_N + BLOCK_N, seqlen_k) - 1
    if first >= seqlen_k:
        return
    j = first + tl.arange(0, BLOCK_N)
    batch = b.to(tl.int64)
    if VARLEN:
        batch = batch * 0
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    kv = kv_head.to(tl.int64)
    keys = K + batch * stride_kb + kv * stride_kh + first_k * stride_ks
    values = V + batch * stride_vb + kv * stride_vh + first_k * stride_vs
    k = load_rows(keys, j, d, stride_ks, seqlen_k, head_dim)
    v = load_rows(values, j, dv, stride_vs, seqlen_k, head_dim_v)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dvalue = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    shift = diagonal(seqlen_q, seqlen_k, TOP_LEFT)
    lo, hi, lo_all, hi_all = query_range(first, last, shift, seqlen_q, left, right, HAS_LEFT, HAS_RIGHT)
    begin_whole, end_whole = whole_tiles(lo, hi, lo_all, hi_all, BLOCK_M, HAS_RIGHT)
    box_b, box_row = batch.to(tl.int32), first_q.to(tl.int32)
    for member in tl.range(0, group):
        head = kv_head * group + member
        h = wide(head)
        queries = Q + batch * stride_qb + h * stride_qh + first_q * stride_qs
        gradients = DOUT + batch * stride_db + h * stride_dh + first_q * stride_ds
        terms = TERMS + (batch * stride_eb + h * stride_eh + first_q) * 4
        mask = MASK_PTR
        if MASK != "":
            mask = MASK_PTR + b.to(tl.int64) * stride_mask_b + h * stride_mask_h
        slope = 0.0
        if HAS_ALIBI:
            slope = tl.load(SLOPES + b.to(tl.int64) * stride_slopes_b + h * stride_slopes_h)
        # Tiles that the causal bound cuts, whole ones, and those that the window or the length cuts.
        for part in tl.static_range(0 if HAS_RIGHT else 1, 3):
            begin = lo if part == 0 else (begin_whole if part == 1 else end_whole)
            end = begin_whole if part == 0 else (end_whole if part == 1 else hi)
            # Cut tiles are few, and in a pipeline their masks would cost registers.
            for start in tl.range(begin, end, BLOCK_M, num_stages=None if part == 1 else 1):
                i = start + tl.arange(0, BLOCK_M)
                m, inverse, delta = load_terms(terms, i, seqlen_q)
                q = load_tile(
                    queries, Q_BOX, box_b, head, box_row, start, d, stride_qs, seqlen_q, head_dim, part != 1, CHECK_D,
                    TMA and (part == 1 or not VARLEN), BLOCK_M,
                )  # fmt: skip
                dout = load_tile(
                    gradients, DOUT_BOX, box_b, head, box_row, start, dv, stride_ds, seqlen_q, head_dim_v, part != 1,
                    CHECK_DV, TMA and (part == 1 or not VARLEN), BLOCK_M,
                )  # fmt: skip
                s = dot_of_rows(k, q, keys, j, stride_ks, seqlen_k, queries, i, stride_qs, seqlen_q, head_dim)
                dp = dot_of_rows(v, dout, values, j, stride_vs, seqlen_k, gradients, i, stride_ds, seqlen_q, head_dim_v)
                if SIGNED:
                    s = signed(s, sign)
                kept = True
                if HAS_DROPOUT:
                    kept = tl.trans(
                        kept_by_dropout(RNG, i[:, None], first, b * heads + head, threshold, BLOCK_M, BLOCK_N)
                    )
                p, ds, _delta = weights_and_gradient(
                    s, dp, kept, i[None, :], j[:, None], m[None, :], inverse[None, :], delta[None, :], mask, slope,
                    stride_mask_q, stride_mask_k, seqlen_q, seqlen_k, shift, left, right, scale, softcap,
                    dropout_scale, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT,
                    HAS_RIGHT, False, part != 1, -1,
                )  # fmt: skip
                if WANT_DV:
                    dvalue = dot(cast(p, dout.dtype), dout, dvalue)
                if WANT_DK:
                    dk = dot(cast(ds, q.dtype), q, dk)
    EXCLUDES: tl.constexpr = HAS_LEFT or HAS_RIGHT or HAS_DROPOUT or MASK != ""
    if EXCLUDES:
        count = not_finite(dk) + not_finite(dvalue)
        if count > 0:
            dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            dvalue = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
            for member in tl.range(0, group, num_stages=1):
                head = kv_head * group + member
                h = wide(head)
                mask = MASK_PTR
                if MASK != "":
                    mask = MASK_PTR + b.to(tl.int64) * stride_mask_b + h * stride_mask_h
                slope = 0.0
                if HAS_ALIBI:
                    slope = tl.load(SLOPES + b.to(tl.int64) * stride_slopes_b + h * stride_slopes_h)
                dk, dvalue = keys_by_pairs(
                    dk, dvalue, j < seqlen_k, j, lo, hi,
                    Q + batch * stride_qb + h * stride_qh + first_q * stride_qs,
                    DOUT + batch * stride_db + h * stride_dh + first_q * stride_ds,
                    keys, values, TERMS + (batch * stride_eb + h * stride_eh + first_q) * 4, mask, slope,
                    b * heads + head, stride_qs, stride_ds, stride_ks, stride_vs, stride_mask_q, stride_mask_k,
                    seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, RNG, threshold, dropout_scale,
                    head_dim, head_dim_v, unit(scale, softcap, HAS_SOFTCAP, MASK == "float" or HAS_ALIBI),
                    SIGNED, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT,
                )  # fmt: skip
    at = first_k + j.to(tl.int64)
    if WANT_DK:
        if SIGNED:
            scale = scale * sign
        rows = DK + batch * stride_gkb + kv * stride_gkh + at * stride_gks
        inside = (j[:, None] < seqlen_k) & (d[None, :] < head_dim)
        store(rows[:, None] + d[None, :], dk * scale, inside)
    if WANT_DV:
        rows = DV + batch * stride_gvb + kv * stride_gvh + at * stride_gvs
        inside = (j[:, None] < seqlen_k) & (dv[None, :] < head_dim_v)
        store(rows[:, None] + dv[None, :], dvalue * dropout_scale, inside)
