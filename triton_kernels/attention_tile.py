"""One tile of attention scores: which rows and keys it has, and what happens to it between the two products.

Everything here is element by element over index blocks that broadcast together, so the same functions serve tiles of
[rows, keys] and of [keys, rows].
"""

from __future__ import annotations

import triton
import triton.language as tl

from .math import LOG2E, dot, philox_kept, tanh, tanh_derivative, wide


@triton.jit
def block_and_plane(rows, BLOCK: tl.constexpr):
    """This program's block of a plane's rows, its plane (a sequence and head), and the number of blocks of a plane.

    All are counted by the grid's x, which has room for 2^31 - 1 programs: y and z end at 65535.
    """
    return nth_block(tl.program_id(0), rows, BLOCK)


@triton.jit
def nth_block(n, rows, BLOCK: tl.constexpr):
    """As block_and_plane, of program n."""
    blocks = tl.cdiv(rows, BLOCK)
    return n % blocks, n // blocks, blocks


@triton.jit
def bounded(n, least, most):
    """A number from memory that no host has checked, cut down to [least, most]."""
    return tl.minimum(tl.maximum(n, least), most)


@triton.jit
def packed_rows(boundaries, b, longest, total):
    """First row (int64) and number of rows of packed sequence b: within `total` rows, and at most `longest`, which
    masks and grids are made for, whatever the boundaries hold."""
    first = bounded(tl.load(boundaries + b), 0, total)
    end = bounded(tl.load(boundaries + b + 1), 0, total)
    return first.to(tl.int64), bounded(end - first, 0, longest).to(tl.int32)


@triton.jit
def sequence(
    b, seqlen_q, seqlen_k, total_q, total_k, cu_q, cu_k, lengths_k, VARLEN: tl.constexpr, CACHE: tl.constexpr
):  # fmt: skip
    """First row, first key, number of rows and of keys of sequence b.

    seqlen_q and seqlen_k: of every sequence, or the longest of packed ones, or the cache's capacity. total_q, total_k:
    rows of the packed tensors.
    """
    first_q = wide(0)
    first_k = wide(0)
    seqlen_q = wide(seqlen_q).to(tl.int32)
    seqlen_k = wide(seqlen_k).to(tl.int32)
    if VARLEN:
        first_q, seqlen_q = packed_rows(cu_q, b, seqlen_q, total_q)
        first_k, seqlen_k = packed_rows(cu_k, b, seqlen_k, total_k)
    if CACHE:
        seqlen_k = bounded(tl.load(lengths_k + b), 0, seqlen_k)
    return first_q, first_k, seqlen_q, seqlen_k


@triton.jit
def load_rows(
    base, rows, columns, stride, limit, width, CHECK_ROWS: tl.constexpr = True, CHECK_WIDTH: tl.constexpr = True
):  # fmt: skip
    """[rows, columns] of a row-major matrix, 0 past `limit` rows and `width` columns."""
    pointers = base + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    if CHECK_ROWS and CHECK_WIDTH:
        return tl.load(pointers, mask=(rows[:, None] < limit) & (columns[None, :] < width), other=0.0)
    if CHECK_ROWS:
        return tl.load(pointers, mask=rows[:, None] < limit, other=0.0)
    if CHECK_WIDTH:
        return tl.load(pointers, mask=columns[None, :] < width, other=0.0)
    return tl.load(pointers)


@triton.jit
def load_tile(
    base, box, b, head, first, start, columns, stride, limit, width,
    CHECK_ROWS: tl.constexpr, CHECK_WIDTH: tl.constexpr, TMA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows [start, start + BLOCK) of a sequence: by TMA from its descriptor of (B, H, S, D), where `first` is the
    sequence's first row and 0 stands past the tensor's end, or as load_rows."""
    if TMA:
        WIDTH: tl.constexpr = box.block_shape[3]
        loaded = tl.reshape(box.load([b, head, first + start, 0]), [BLOCK, WIDTH])
    else:
        loaded = load_rows(base, start + tl.arange(0, BLOCK), columns, stride, limit, width, CHECK_ROWS, CHECK_WIDTH)
    return loaded


#: Columns that a product of wide rows takes at a time.
PIECE: tl.constexpr = tl.constexpr(32)


@triton.jit
def signed(s, sign):
    """Scores times the sign of the scale, -1 or 0."""
    return tl.where(sign == 0.0, 0.0, s * sign)


@triton.jit
def dot_of_rows(a_tile, b_tile, a, a_rows, a_stride, a_limit, b, b_rows, b_stride, b_limit, width):
    """A B^T of two tiles of rows, `width` columns each.

    Wide rows of float32 are read from memory again, some columns at a time: of a whole row, in the two parts that its
    product takes, there are more numbers than registers (a thousand instructions spilled at head dim 256).
    """
    acc = tl.zeros([a_tile.shape[0], b_tile.shape[0]], tl.float32)
    if a_tile.dtype == tl.float32 and a_tile.shape[1] > 128:
        for start in tl.range(0, width, PIECE):
            columns = start + tl.arange(0, PIECE)
            of_a = load_rows(a, a_rows, columns, a_stride, a_limit, width)
            acc = dot(of_a, tl.trans(load_rows(b, b_rows, columns, b_stride, b_limit, width)), acc)
    else:
        acc = dot(a_tile, tl.trans(b_tile), acc)
    return acc


@triton.jit
def load_statistics(pointers, used):
    """A row's maximum and 1 / sum; of rows that are not there maximum = +inf, so that every weight is 0."""
    m = tl.load(pointers, mask=used, other=float("inf"))
    return m, tl.load(pointers + 1, mask=used, other=0.0)


@triton.jit
def load_terms(terms, rows, limit):
    """Of a block of rows: maximum, 1 / sum and delta, as attention_backward_rows leaves them; past `limit` as
    load_statistics has them.

    One wide load of four numbers for each row. Three loads of one number would be laid out as the tile of scores is:
    the same numbers in many threads, with an address for each.
    """
    part = tl.arange(0, 4)[None, :]
    found = tl.load(
        terms + rows.to(tl.int64)[:, None] * 4 + part,
        mask=rows[:, None] < limit,
        other=tl.where(part == 0, float("inf"), 0.0),
    )
    m = tl.sum(tl.where(part == 0, found, 0.0), 1)
    inverse = tl.sum(tl.where(part == 1, found, 0.0), 1)
    return m, inverse, tl.sum(tl.where(part == 2, found, 0.0), 1)


@triton.jit
def diagonal(seqlen_q, seqlen_k, TOP_LEFT: tl.constexpr):
    """Query i stands at key i + shift."""
    if TOP_LEFT:
        return seqlen_k * 0
    return seqlen_k - seqlen_q


@triton.jit
def key_range(first, last, shift, seqlen_k, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Keys [lo, hi) that some of the queries first to last see, and [lo_all, hi_all) that all of them see."""
    lo = seqlen_k * 0
    lo_all = lo
    hi = seqlen_k
    hi_all = seqlen_k
    if HAS_RIGHT:
        hi = tl.maximum(tl.minimum(hi, last + shift + right + 1), 0)
        hi_all = tl.maximum(tl.minimum(hi_all, first + shift + right + 1), 0)
    if HAS_LEFT:
        # A multiple of 16: dropout's random numbers come in fours, and wide loads are aligned.
        lo = tl.minimum(tl.maximum(first + shift - left, 0) // 16 * 16, hi)
        lo_all = tl.maximum(last + shift - left, 0)
    return lo, hi, lo_all, hi_all


@triton.jit
def query_range(first, last, shift, seqlen_q, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Queries [lo, hi) that see some of the keys first to last, and [lo_all, hi_all) that see all of them."""
    lo = seqlen_q * 0
    lo_all = lo
    hi = seqlen_q
    hi_all = seqlen_q
    if HAS_RIGHT:
        lo = tl.maximum(first - shift - right, 0)
        lo_all = tl.maximum(last - shift - right, 0)
    if HAS_LEFT:
        hi = tl.maximum(tl.minimum(hi, last - shift + left + 1), 0)
        hi_all = tl.maximum(tl.minimum(hi_all, first - shift + left + 1), 0)
    return tl.minimum(lo, hi), hi, lo_all, hi_all


@triton.jit
def whole_tiles(lo, hi, lo_all, hi_all, BLOCK: tl.constexpr, HAS_LOW: tl.constexpr):
    """[begin, end) of the tiles from lo on that nothing cuts: with HAS_LOW, something cuts those before."""
    begin = lo
    if HAS_LOW:
        begin = tl.minimum(lo + tl.cdiv(tl.maximum(lo_all - lo, 0), BLOCK) * BLOCK, hi)
    return begin, begin + tl.maximum(tl.minimum(hi_all, hi) - begin, 0) // BLOCK * BLOCK


@triton.jit
def visible(i, j, seqlen_q, seqlen_k, shift, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Whether query i sees key j, as far as lengths, causal bound and window say."""
    keep = (i < seqlen_q) & (j < seqlen_k)
    if HAS_RIGHT:
        keep = keep & (j <= i + shift + right)
    if HAS_LEFT:
        keep = keep & (j >= i + shift - left)
    return keep


@triton.jit
def logits(
    s,
    i,
    j,
    mask,  # at this sequence and head
    stride_mask_q,
    stride_mask_k,
    slope,
    seqlen_q,
    seqlen_k,
    shift,
    left,
    right,
    scale,
    softcap,
    MASK: tl.constexpr,  # "", "bool" or "float"
    HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    MASKED: tl.constexpr,  # the tile has pairs that lengths, bound or window exclude
):
    """From q . k to what softmax_weights takes, excluded pairs at -inf; and the derivative of the cap, if there is one.

    That is the logits where something is added to the scores, and otherwise what the cap or the scale is still to be
    multiplied with: see unit.
    """
    dcap = s
    if HAS_SOFTCAP:
        x = s * (scale / softcap)
        s = tanh(x)
        dcap = tanh_derivative(x, s)  # no instruction where nobody uses it
    if MASK == "float" or HAS_ALIBI:
        s = s * (softcap if HAS_SOFTCAP else scale)
        if HAS_ALIBI:
            s -= slope * tl.abs(i + shift - j).to(tl.float32)
    if MASK != "":
        inside = (i < seqlen_q) & (j < seqlen_k)
        found = tl.load(mask + i.to(tl.int64) * stride_mask_q + j.to(tl.int64) * stride_mask_k, mask=inside, other=0)
        if MASK == "bool":
            s = tl.where(found != 0, s, float("-inf"))
        else:
            found = found.to(tl.float32)
            s = tl.where(found == float("-inf"), found, s + found)  # whatever the score is, NaN as well
    if MASKED:
        s = tl.where(visible(i, j, seqlen_q, seqlen_k, shift, left, right, HAS_LEFT, HAS_RIGHT), s, float("-inf"))
    return s, dcap


# Row maxima are scores as logits() answers them. A weight is the exponential of a difference that is taken first: of a
# maximum that was scaled and rounded before, the largest score would differ by its rounding, which of scores of 1e9 is
# an exponent of 60.


@triton.jit
def unit(scale, softcap, HAS_SOFTCAP: tl.constexpr, NATURAL: tl.constexpr):
    """What the numbers that logits() answers are still to be multiplied by; positive. NATURAL: by nothing."""
    if NATURAL:
        return 1.0
    return softcap if HAS_SOFTCAP else scale


@triton.jit
def softmax_weights(s, m, factor):
    """exp(logit - maximum), of scores or of a row's earlier maximum."""
    return tl.exp2((s - m) * (factor * LOG2E))


@triton.jit
def kept_by_dropout(rng, i, start, plane, threshold, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """[ROWS, KEYS]: whether dropout keeps the weight of query i, (ROWS, 1), for each key from `start` on, a multiple of
    4."""
    fours = start // 4 + tl.arange(0, KEYS // 4)[None, :]
    return philox_kept(rng, fours, i, plane, threshold.to(tl.uint32), ROWS, KEYS)
