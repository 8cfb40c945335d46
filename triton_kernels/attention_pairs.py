"""Sums of attention over pairs of a query and a key where something is not finite.

A product of tiles multiplies the weight of an excluded pair, 0, with what its key or its query holds, and 0 times an
infinity is NaN. So where a block's sum is not finite, and pairs may be excluded, it is taken again, pair by pair: one
of weight 0 has no part in it, whatever it holds. That takes many times as long, and is as rare as such numbers are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_tile import PIECE, bounded, load_terms, logits, signed, softmax_weights
from .math import philox, wide


@triton.jit
def not_finite(x):
    """How many elements of a tile are NaN or an infinity."""
    return tl.sum(tl.ravel(1 - (tl.abs(x) < float("inf")).to(tl.int32)), 0)


@triton.jit
def zero_of(count):
    """0, of a number of elements of a tile; the compiler does not see that it is.

    What depends on it cannot be computed before the count is known, so the rare way keeps nothing in registers while
    the usual one runs.
    """
    return count >> 24


@triton.jit
def _row(base, j, stride, table, page_size, pages, stride_page, PAGED: tl.constexpr):
    """Where row j of a tensor is; as attention's _load_keys has it."""
    if PAGED:
        page = wide(bounded(tl.load(table + j // page_size), 0, pages - 1))
        return base + page * stride_page + wide(j % page_size) * stride
    return base + wide(j) * stride


@triton.jit
def _dots(rows, used, one, width):
    """(rows, 1): the products of a block of rows in memory with one row, some columns at a time."""
    total = tl.zeros([used.shape[0]], tl.float32)
    for first in tl.range(0, width, PIECE, num_stages=1):
        columns = first + tl.arange(0, PIECE)
        inside = columns < width
        a = tl.load(rows[:, None] + columns[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        b = tl.load(one + columns, mask=inside, other=0.0)
        total += tl.sum(a.to(tl.float32) * b.to(tl.float32)[None, :], 1)
    return total[:, None]


@triton.jit
def _one(j):
    return tl.zeros([1, 1], tl.int32) + j


@triton.jit
def _share(weight, x):
    return tl.where(weight == 0.0, 0.0, weight * x)


@triton.jit
def _kept(rng, i, j, plane, threshold):
    """Whether dropout keeps the weights of queries i and keys j; blocks of indices that broadcast together. As
    kept_by_dropout, but for a single column or row, which draws of four are too wide for."""
    zero = (i + j + plane) * 0
    w0, w1, w2, w3 = philox(rng, (j // 4 + zero).to(tl.uint32), (i + zero).to(tl.uint32), (plane + zero).to(tl.uint32))
    lane = j % 4 + zero
    word = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    return word >= threshold.to(tl.uint32)


@triton.jit
def attend_pairs(
    q_rows, used, i, m, begin, end, keys, values, mask, slope, plane,
    stride_ks, stride_vs, stride_kp, stride_vp, stride_mask_q, stride_mask_k, table, page_size, pages,
    seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, rng, threshold, head_dim, head_dim_v, factor,
    SIGNED: tl.constexpr, BLOCK_DV: tl.constexpr, PAGED: tl.constexpr,
    MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
):  # fmt: skip
    """The weighted sums of values over keys [begin, end), relative to the rows' maxima m."""
    ROWS: tl.constexpr = used.shape[0]
    dv = tl.arange(0, BLOCK_DV)
    acc = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    base = tl.where(m == float("-inf"), 0.0, m)[:, None]
    for j in tl.range(begin, end, num_stages=1):
        s = _dots(q_rows, used, _row(keys, j, stride_ks, table, page_size, pages, stride_kp, PAGED), head_dim)
        if SIGNED:
            s = signed(s, sign)
        s, _dcap = logits(
            s, i[:, None], _one(j), mask, stride_mask_q, stride_mask_k, slope, seqlen_q, seqlen_k, shift, left,
            right, scale, softcap, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_LEFT, HAS_RIGHT, True,
        )  # fmt: skip
        p = tl.where(s == float("-inf"), 0.0, softmax_weights(s, base, factor))
        if HAS_DROPOUT:
            p = tl.where(_kept(rng, i[:, None], _one(j), plane, threshold), p, 0.0)
        at = _row(values, j, stride_vs, table, page_size, pages, stride_vp, PAGED)
        v = tl.load(at + dv, mask=dv < head_dim_v, other=0.0).to(tl.float32)
        acc += _share(p, v[None, :])
    return acc


@triton.jit
def _gradients(
    s, dp, i, j, m, inverse, delta, kept, mask, slope, stride_mask_q, stride_mask_k,
    seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, dropout_scale, factor,
    SIGNED: tl.constexpr, MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
):  # fmt: skip
    """As attention_backward's weights_and_gradient: P after dropout, dS, and P dP; all 0 where a pair is excluded."""
    if SIGNED:
        s = signed(s, sign)
    s, dcap = logits(
        s, i, j, mask, stride_mask_q, stride_mask_k, slope, seqlen_q, seqlen_k, shift, left, right, scale, softcap,
        MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_LEFT, HAS_RIGHT, True,
    )  # fmt: skip
    seen = (s != float("-inf")) & (m != float("inf"))
    p = tl.where(seen, softmax_weights(tl.minimum(s, m), m, factor) * inverse, 0.0)
    dropped = p
    if HAS_DROPOUT:
        dropped = tl.where(kept, p, 0.0)
        dp = tl.where(kept, dp * dropout_scale, 0.0)
    ds = tl.where(seen, p * (dp - delta), 0.0)
    if HAS_SOFTCAP:
        ds = tl.where(seen, ds * dcap, 0.0)
    return dropped, ds, tl.where(seen, p * dp, 0.0)


@triton.jit
def rows_by_pairs(
    queries, gradients, used, i, begin, end, keys, values, m, inverse, delta, mask, slope, plane,
    stride_qs, stride_ds, stride_ks, stride_vs, stride_mask_q, stride_mask_k,
    seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, rng, threshold, dropout_scale, head_dim, head_dim_v,
    factor,
    SIGNED: tl.constexpr, BLOCK_D: tl.constexpr, MASK: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
):  # fmt: skip
    """dQ, without the scale, of rows i over keys [begin, end), and the sum of P dP."""
    ROWS: tl.constexpr = used.shape[0]
    d = tl.arange(0, BLOCK_D)
    dq = tl.zeros([ROWS, BLOCK_D], tl.float32)
    products = tl.zeros([ROWS, 1], tl.float32)
    for j in tl.range(begin, end, num_stages=1):
        key = keys + wide(j) * stride_ks
        s = _dots(queries + i.to(tl.int64) * stride_qs, used, key, head_dim)
        dp = _dots(gradients + i.to(tl.int64) * stride_ds, used, values + wide(j) * stride_vs, head_dim_v)
        kept = True
        if HAS_DROPOUT:
            kept = _kept(rng, i[:, None], _one(j), plane, threshold)
        _p, ds, product = _gradients(
            s, dp, i[:, None], _one(j), m[:, None], inverse[:, None], delta[:, None], kept, mask, slope,
            stride_mask_q, stride_mask_k, seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, dropout_scale,
            factor, SIGNED, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT,
        )  # fmt: skip
        dq += _share(ds, tl.load(key + d, mask=d < head_dim, other=0.0).to(tl.float32)[None, :])
        products += product
    return dq, tl.sum(products, 1)


@triton.jit
def keys_by_pairs(
    dk, dv, used, j, begin, end, queries, gradients, keys, values, terms, mask, slope, plane,
    stride_qs, stride_ds, stride_ks, stride_vs, stride_mask_q, stride_mask_k,
    seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, rng, threshold, dropout_scale, head_dim, head_dim_v,
    factor,
    SIGNED: tl.constexpr, MASK: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
):  # fmt: skip
    """dK and dV, without their scales, of keys j, with what queries [begin, end) of one head add to them."""
    d, columns_v = tl.arange(0, dk.shape[1]), tl.arange(0, dv.shape[1])
    for i in tl.range(begin, end, num_stages=1):
        query, gradient = queries + wide(i) * stride_qs, gradients + wide(i) * stride_ds
        s = _dots(keys + j.to(tl.int64) * stride_ks, used, query, head_dim)
        dp = _dots(values + j.to(tl.int64) * stride_vs, used, gradient, head_dim_v)
        kept = True
        if HAS_DROPOUT:
            kept = _kept(rng, _one(i), j[:, None], plane, threshold)
        row = tl.zeros([1], tl.int32) + i
        m, inverse, delta = load_terms(terms, row, seqlen_q)
        p, ds, _product = _gradients(
            s, dp, _one(i), j[:, None], m[None, :], inverse[None, :], delta[None, :], kept, mask, slope,
            stride_mask_q, stride_mask_k, seqlen_q, seqlen_k, shift, left, right, scale, sign, softcap, dropout_scale,
            factor, SIGNED, MASK, HAS_ALIBI, HAS_SOFTCAP, HAS_DROPOUT, HAS_LEFT, HAS_RIGHT,
        )  # fmt: skip
        dk += _share(ds, tl.load(query + d, mask=d < head_dim, other=0.0).to(tl.float32)[None, :])
        dv += _share(p, tl.load(gradient + columns_v, mask=columns_v < head_dim_v, other=0.0).to(tl.float32)[None, :])
    return dk, dv
