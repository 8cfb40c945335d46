"""softmax and log_softmax along one dimension, with scale, mask and causal bound fused; forward and backward.

A program works on a tile: up to ROWS rows, neighbours in the innermost row dimension, by COLUMNS columns. Which of the
two directions is contiguous in memory is the strides' affair: Triton lays a tile out along the one whose stride is 1.

Each direction has two kernels. Where a row fits into a tile it is read once and kept in registers. Wider rows are
looped over twice, the second time backwards, so that what was read last comes from the cache; a few very wide rows
are cut into pieces for several programs, and the two loops are then two launches (PHASE) with a merge between them.

Row dimensions: outer, middle and inner, with strides x0, x1, x2 of tensor x; x3 is the stride of its columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .math import LOG2E, store, wide

#: A maximum that nothing has entered yet. Finite, so that no difference of maxima is inf - inf.
_LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
_INF: tl.constexpr = tl.constexpr(float("inf"))
#: 1.5 * 2^23: what is added to it is rounded to a whole number.
_ROUND: tl.constexpr = tl.constexpr(12582912.0)
#: ln(2) as a number of few bits, whose small multiples are exact, and the rest of it.
_LN2_HIGH: tl.constexpr = tl.constexpr(0.693145751953125)
_LN2_LOW: tl.constexpr = tl.constexpr(1.428606820309417e-6)

#: Elements that a thread loads at once, at most: 16 bytes of a bool mask.
_LOADED: tl.constexpr = tl.constexpr(16)

#: PHASE of the looped kernels: both loops in one program, or one of them on a piece of the row.
WHOLE, GATHER, WRITE = 0, 1, 2
_GATHER: tl.constexpr = tl.constexpr(GATHER)
_WRITE: tl.constexpr = tl.constexpr(WRITE)

# --- arithmetic ----------------------------------------------------------------------------------------------------


@triton.jit
def _exp(x, PRECISE: tl.constexpr):
    """e^x for x <= 0. The hardware computes 2^x, and a large x * log2(e) is rounded coarsely: PRECISE, for float32
    results, splits x = k ln(2) + r, so that only r is multiplied."""
    if PRECISE:
        x = tl.where(x < -200.0, -200.0, x)  # gives 0 as well, without inf - inf
        k = (x * LOG2E + _ROUND) - _ROUND
        r = (x - k * _LN2_HIGH) - k * _LN2_LOW
        e = tl.exp2(r * LOG2E) * tl.exp2(k)
    else:
        e = tl.exp(x)
    return e


@triton.jit
def _log(x):
    """ln(x) of a sum. The hardware's logarithm has an absolute error, too large around 1; there is one x in a row."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # x = m * 2^exponent, m between sqrt(1/2) and sqrt(2)
    m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    z = s * s  # below 0.03: five terms of the series of 2 artanh(s)
    series = (((z * (1.0 / 9.0) + 1.0 / 7.0) * z + 1.0 / 5.0) * z + 1.0 / 3.0) * z
    k = exponent.to(tl.float32)
    log = k * _LN2_HIGH + (k * _LN2_LOW + (2.0 * s + 2.0 * s * series))
    return tl.where(x < _INF, log, x)  # NaN stays NaN


@triton.jit
def _tile_rows(inner, middle, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """This program's position in the two outer row dimensions, and its rows in the inner one, (ROWS, 1)."""
    program = tl.program_id(0)
    if WIDE:
        program = wide(program)
    blocks = tl.cdiv(inner, ROWS)
    outer = program // blocks
    row = (program % blocks) * ROWS + tl.arange(0, ROWS)[:, None]
    return outer // middle, outer % middle, row


@triton.jit
def _tile_columns(start, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    column = tl.arange(0, COLUMNS)[None, :]
    if WIDE:
        column = column.to(tl.int64)
    return start + column


@triton.jit
def _kept(row, column, causal_shift, SQUARE: tl.constexpr):
    """The causal bound; in squares of that size, kept if any of it is, so that it does not cut wide loads apart."""
    return column // SQUARE * SQUARE <= row // SQUARE * SQUARE + (SQUARE - 1 + causal_shift)


@triton.jit
def _piece(columns, steps, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """This program's piece of the row: its first column, and its steps, of which there are fewer at the row's end."""
    begin = (wide(tl.program_id(1)) if WIDE else tl.program_id(1)) * steps * COLUMNS
    return begin, tl.minimum(steps, tl.cdiv(tl.maximum(columns - begin, 0), COLUMNS))


# --- forward -------------------------------------------------------------------------------------------------------


@triton.jit
def _scores(
    x, x3, mask, m3, scale, causal_shift, row, column, live, EVICT: tl.constexpr,
    CAUSAL: tl.constexpr, BOOL_MASK: tl.constexpr,
):  # fmt: skip
    """scale * x + mask of a tile, in float32; -inf where excluded or not live. x and mask point to the rows."""
    if CAUSAL:
        live = live & _kept(row, column, causal_shift, _LOADED)
    s = tl.load(x + column * x3, live, other=0.0, eviction_policy=EVICT).to(tl.float32) * scale
    if mask is not None:
        m = tl.load(mask + column * m3, live, other=0)
        if BOOL_MASK:
            live = live & (m != 0)
        else:
            m = m.to(tl.float32)
            s = tl.where(m == -_INF, -_INF, s + m)  # whatever the score is, NaN as well
    if CAUSAL:
        live = live & _kept(row, column, causal_shift, 1)
    return tl.where(live, s, -_INF)


@triton.jit
def _normalised(s, top, total, LOG: tl.constexpr, PRECISE: tl.constexpr):
    """The result for scores s of rows with that maximum and that sum of exponentials. A sum of 0: all excluded."""
    total = tl.where(total == 0.0, 1.0, total)
    if LOG:
        y = (s - top) - _log(total)
    elif PRECISE:
        y = tl.div_rn(_exp(s - top, PRECISE), total)
    else:
        y = _exp(s - top, PRECISE) * (1.0 / total)
    return y


@triton.jit(do_not_specialize=["causal_shift", "middle"])
def softmax_forward(
    x, y, mask, scale, causal_shift, middle, inner, columns,
    x0, x1, x2, x3, y0, y1, y2, y3, m0, m1, m2, m3,
    LOG: tl.constexpr, CAUSAL: tl.constexpr, BOOL_MASK: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows of at most COLUMNS columns: one read, one write."""
    PRECISE: tl.constexpr = y.dtype.element_ty == tl.float32
    i, j, row = _tile_rows(inner, middle, ROWS, WIDE)
    column = _tile_columns(0, COLUMNS, WIDE)
    live = (row < inner) & (column < columns)
    x += i * x0 + j * x1 + row * x2
    if mask is not None:
        mask += i * m0 + j * m1 + row * m2
    s = _scores(x, x3, mask, m3, scale, causal_shift, row, column, live, "evict_first", CAUSAL, BOOL_MASK)
    top = tl.max(s, 1, keep_dims=True)
    top = tl.where(top == -_INF, 0.0, top)
    total = tl.sum(_exp(s - top, PRECISE), 1, keep_dims=True)
    store(y + i * y0 + j * y1 + row * y2 + column * y3, _normalised(s, top, total, LOG, PRECISE), live)


@triton.jit
def _merge(top, total, PRECISE: tl.constexpr):
    """One maximum and sum for a row, (ROWS, 1), of those of its parts."""
    best = tl.max(top, 1, keep_dims=True)
    return best, tl.sum(total * _exp(top - best, PRECISE), 1, keep_dims=True)


@triton.jit(do_not_specialize=["causal_shift", "middle", "steps"])
def softmax_forward_looped(
    x, y, mask, partial, scale, causal_shift, middle, inner, columns, steps,
    x0, x1, x2, x3, y0, y1, y2, y3, m0, m1, m2, m3,
    LOG: tl.constexpr, CAUSAL: tl.constexpr, BOOL_MASK: tl.constexpr, WIDE: tl.constexpr,
    PHASE: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows of any width, in pieces of ``steps`` times COLUMNS columns.

    partial: (2, programs * ROWS, PIECES) maxima and sums, from the gathering launch to the writing one.
    """
    PRECISE: tl.constexpr = y.dtype.element_ty == tl.float32
    i, j, row = _tile_rows(inner, middle, ROWS, WIDE)
    x += i * x0 + j * x1 + row * x2
    if mask is not None:
        mask += i * m0 + j * m1 + row * m2
    y += i * y0 + j * y1 + row * y2
    begin, steps = _piece(columns, steps, COLUMNS, WIDE)
    slot = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]) * PIECES
    sums = tl.num_programs(0) * ROWS * PIECES
    if PHASE == _WRITE:
        slot += tl.arange(0, PIECES)[None, :]
        top, total = _merge(tl.load(partial + slot), tl.load(partial + sums + slot), PRECISE)
    else:
        # Every lane has a maximum and a sum of its own, so that the loop needs no exchange between threads.
        best = tl.full((ROWS, COLUMNS), _LOWEST, tl.float32)
        added = tl.zeros((ROWS, COLUMNS), tl.float32)
        gathered = steps
        if CAUSAL:
            last = (tl.program_id(0) % tl.cdiv(inner, ROWS)) * ROWS + ROWS + causal_shift
            gathered = tl.minimum(steps, tl.cdiv(tl.maximum(last - begin, 0), COLUMNS))
        for step in range(gathered):
            column = _tile_columns(begin + step * COLUMNS, COLUMNS, WIDE)
            live = (row < inner) & (column < columns)
            s = _scores(x, x3, mask, m3, scale, causal_shift, row, column, live, "evict_last", CAUSAL, BOOL_MASK)
            e = _exp(-tl.abs(s - best), PRECISE)
            added = tl.where(s > best, added * e + 1.0, added + e)
            best = tl.maximum(best, s)
        top, total = _merge(best, added, PRECISE)
    if PHASE == _GATHER:
        slot += tl.program_id(1)
        tl.store(partial + slot, top)
        tl.store(partial + sums + slot, total)
    else:
        for step in range(steps):
            column = _tile_columns(begin + (steps - 1 - step) * COLUMNS, COLUMNS, WIDE)
            live = (row < inner) & (column < columns)
            s = _scores(x, x3, mask, m3, scale, causal_shift, row, column, live, "evict_first", CAUSAL, BOOL_MASK)
            store(y + column * y3, _normalised(s, top, total, LOG, PRECISE), live)


# --- backward ------------------------------------------------------------------------------------------------------


@triton.jit
def _load_gradient(
    y, y3, dy, d3, causal_shift, row, column, live, EVICT: tl.constexpr, LOG: tl.constexpr, CAUSAL: tl.constexpr
):  # fmt: skip
    """y and dy of a tile, in float32. What is excluded has y = 0 (LOG: -inf) and does not count, whatever its dy is."""
    if CAUSAL:
        live = live & _kept(row, column, causal_shift, _LOADED)
    p = tl.load(y + column * y3, live, other=-_INF if LOG else 0.0, eviction_policy=EVICT).to(tl.float32)
    g = tl.load(dy + column * d3, live, other=0.0, eviction_policy=EVICT).to(tl.float32)
    return p, tl.where(p == (-_INF if LOG else 0.0), 0.0, g)


@triton.jit
def _store_gradient(dx, ds, at, p, g, total, scale, live, LOG: tl.constexpr, PRECISE: tl.constexpr):
    """The gradient of the scores to ds, and that of x to dx, where they are wanted."""
    s = g - _exp(p, PRECISE) * total if LOG else p * (g - total)
    s = tl.where(p == (-_INF if LOG else 0.0), 0.0, s)
    if dx is not None:
        store(dx + at, s * scale, live)
    if ds is not None:
        store(ds + at, s, live)


@triton.jit(do_not_specialize=["causal_shift", "middle"])
def softmax_backward(
    y, dy, dx, ds, scale, causal_shift, middle, inner, columns,
    y0, y1, y2, y3, d0, d1, d2, d3, o0, o1, o2, o3,
    LOG: tl.constexpr, CAUSAL: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """softmax: ds = y (dy - sum(y dy)). LOG: ds = dy - exp(y) sum(dy). dx = scale ds; dx and ds have strides o."""
    PRECISE: tl.constexpr = y.dtype.element_ty == tl.float32
    i, j, row = _tile_rows(inner, middle, ROWS, WIDE)
    column = _tile_columns(0, COLUMNS, WIDE)
    live = (row < inner) & (column < columns)
    y += i * y0 + j * y1 + row * y2
    dy += i * d0 + j * d1 + row * d2
    p, g = _load_gradient(y, y3, dy, d3, causal_shift, row, column, live, "evict_first", LOG, CAUSAL)
    total = tl.sum(g if LOG else p * g, 1, keep_dims=True)
    at = i * o0 + j * o1 + row * o2 + column * o3
    _store_gradient(dx, ds, at, p, g, total, scale, live, LOG, PRECISE)


@triton.jit(do_not_specialize=["causal_shift", "middle", "steps"])
def softmax_backward_looped(
    y, dy, dx, ds, partial, scale, causal_shift, middle, inner, columns, steps,
    y0, y1, y2, y3, d0, d1, d2, d3, o0, o1, o2, o3,
    LOG: tl.constexpr, CAUSAL: tl.constexpr, WIDE: tl.constexpr,
    PHASE: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """As softmax_backward, for rows of any width. partial: (programs * ROWS, PIECES) sums."""
    PRECISE: tl.constexpr = y.dtype.element_ty == tl.float32
    i, j, row = _tile_rows(inner, middle, ROWS, WIDE)
    y += i * y0 + j * y1 + row * y2
    dy += i * d0 + j * d1 + row * d2
    begin, steps = _piece(columns, steps, COLUMNS, WIDE)
    slot = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]) * PIECES
    if PHASE == _WRITE:
        total = tl.sum(tl.load(partial + slot + tl.arange(0, PIECES)[None, :]), 1, keep_dims=True)
    else:
        added = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(steps):
            column = _tile_columns(begin + step * COLUMNS, COLUMNS, WIDE)
            live = (row < inner) & (column < columns)
            p, g = _load_gradient(y, y3, dy, d3, causal_shift, row, column, live, "evict_last", LOG, CAUSAL)
            added += g if LOG else p * g
        total = tl.sum(added, 1, keep_dims=True)
    if PHASE == _GATHER:
        tl.store(partial + slot + tl.program_id(1), total)
    else:
        for step in range(steps):
            column = _tile_columns(begin + (steps - 1 - step) * COLUMNS, COLUMNS, WIDE)
            live = (row < inner) & (column < columns)
            p, g = _load_gradient(y, y3, dy, d3, causal_shift, row, column, live, "evict_first", LOG, CAUSAL)
            at = i * o0 + j * o1 + row * o2 + column * o3
            _store_gradient(dx, ds, at, p, g, total, scale, live, LOG, PRECISE)
