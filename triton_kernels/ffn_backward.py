"""The gradients of the feed-forward block:

dz = dropout(dout); dh = dz w_out; dpre = dh act'(pre) (gated: dgate = dh up act'(gate), dup = dh act(gate));
dx = dpre w_in; dw_in = dpre^T x; dw_out = dz^T hidden; db_in, db_out: column sums of dpre, dz.

The derivative, hidden (again) and the sums of db_in over a block of rows come out of the epilogue of dz w_out. Every
sum has a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .ffn import GATES, Dropout
from .ffn_product import (
    dropout_factors,
    indices,
    load_tile,
    multiply,
    pieces,
    route,
    store_tile,
    tile_blocks,
    tile_range,
    tiles,
)
from .launch import config
from .math import store


@triton.jit(do_not_specialize=["threshold"])
def drop_kernel(
    dout,
    dz,
    rng,
    threshold,
    scale,
    rows,
    width,
    row_stride,
    column_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dz (rows, width) = dropout(dout)."""
    block_m, block_n = tile_blocks(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, 1)
    row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * row_stride + column[None, :] * column_stride
    kept = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
    kept *= dropout_factors(rng, threshold, scale, block_m, block_n, BLOCK_M, BLOCK_N)
    store(dz + row[:, None] * width + column[None, :], kept, inside)


@triton.jit
def _store_sums(sums, x, block_m, block_n, width, row_stride):
    column = indices(block_n, x.shape[1])
    at = block_m.to(tl.int64) * row_stride + column
    tl.store(sums + at, tl.sum(x, 0), mask=column < width)


@triton.jit
def _finish_gradient(
    dh,
    pre,
    pre_up,
    dpre,
    dpre_up,
    hidden,
    sums,
    block_m,
    block_n,
    rows,
    width,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    TMA: tl.constexpr,
):
    """What hidden_gradient_kernel does with a tile of dz w_out."""
    BLOCK_M: tl.constexpr = dh.shape[0]
    BLOCK_N: tl.constexpr = dh.shape[1]
    inner = width
    if GATED:
        inner = 2 * width
    gate = load_tile(pre, block_m, block_n, rows, width, inner, BLOCK_M, BLOCK_N, TMA)
    value, slope = activate(gate, ACTIVATION)
    if GATED:
        dup = dh * value
        store_tile(dpre_up, dup, block_m, block_n, rows, width, inner, TMA)
        if sums is not None:
            _store_sums(sums + width, dup, block_m, block_n, width, inner)
        up = load_tile(pre_up, block_m, block_n, rows, width, inner, BLOCK_M, BLOCK_N, TMA)
        value *= up
        dh *= up
    if hidden is not None:
        store_tile(hidden, value, block_m, block_n, rows, width, width, TMA)
    dh *= slope
    store_tile(dpre, dh, block_m, block_n, rows, width, inner, TMA)
    if sums is not None:
        _store_sums(sums, dh, block_m, block_n, width, inner)


@triton.jit
def hidden_gradient_kernel(
    dz,
    dz_row_stride,
    dz_depth_stride,
    w_out,
    w_depth_stride,
    w_column_stride,
    pre,
    pre_up,
    dpre,
    dpre_up,
    hidden,
    sums,
    rows,
    width,
    depth,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """dpre and hidden from dz w_out and pre; sums (row blocks, width or 2 width): dpre summed over a block of rows.

    Gated, pre and dpre are the gate's columns of (rows, 2 width), pre_up and dpre_up the others.
    """
    first, last, step = tile_range(rows, width, BLOCK_M, BLOCK_N, PROGRAMS)
    for tile in tl.range(first, last, step, flatten=PROGRAMS > 0):
        block_m, block_n = tile_blocks(tile, rows, width, BLOCK_M, BLOCK_N, GROUP_M)
        dh = multiply(
            dz, dz_row_stride, dz_depth_stride, w_out, w_depth_stride, w_column_stride, block_m, block_n, rows,
            width, 0, depth, False, EVEN_K, TMA, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        dhs = pieces(dh, PIECES)
        for i in tl.static_range(PIECES):
            _finish_gradient(
                dhs[i], pre, pre_up, dpre, dpre_up, hidden, sums, block_m, PIECES * block_n + i, rows, width,
                ACTIVATION, GATED, TMA,
            )  # fmt: skip


def dropped(dout: Tensor, dropout: Dropout | None) -> Tensor:
    """dz. Without dropout it is dout itself, whatever its strides."""
    if dropout is None or dout.numel() == 0:
        return dout
    (rows, width), dz = dout.shape, torch.empty(dout.shape, dtype=dout.dtype, device=dout.device)
    found = config("ffn_drop", "", dout.device)
    drop_kernel[(tiles(rows, width, found.blocks),)](
        dout, dz, *dropout.arguments, rows, width, *dout.stride(), **found.options
    )
    return dz


def hidden_gradient(
    dz: Tensor, w_out: Tensor, pre: Tensor, activation: str, *, want_hidden: bool, want_sums: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dpre, of pre's shape; hidden, and db_in in float32, where they are wanted."""
    (rows, inner), (depth, width), gated = pre.shape, w_out.shape, activation in GATES
    dpre = torch.empty_like(pre)
    hidden = pre.new_empty((rows, width)) if want_hidden else None
    at, dat = pre, dpre
    up = dup = None
    if gated:
        at, up, dat, dup = pre[:, :width], pre[:, width:], dpre[:, :width], dpre[:, width:]
    kernel = "ffn_hidden_gradient_gated" if gated else "ffn_hidden_gradient"
    chosen = route(kernel, dz, w_out, "kn", at, up, dat, dup, hidden, columns=width)
    row_blocks = triton.cdiv(rows, chosen.config.blocks["BLOCK_M"])
    sums = pre.new_empty((row_blocks, inner), dtype=torch.float32) if want_sums else None
    if pre.numel() > 0:
        hidden_gradient_kernel[(chosen.grid(rows, width, dz.device),)](
            *chosen.left(dz), *chosen.right(w_out, "kn"), chosen.tiles(at), chosen.tiles(up), chosen.tiles(dat),
            chosen.tiles(dup), chosen.tiles(hidden), sums, rows, width, depth,
            ACTIVATION=GATES.get(activation, activation), GATED=gated, **chosen.options(depth),
        )  # fmt: skip
    return dpre, hidden, None if sums is None else sums.sum(0)
