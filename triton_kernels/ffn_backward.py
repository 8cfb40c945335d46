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
from .ffn_product import dropout_factors, indices, multiply, program_tile, table_key, tiles
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
    block_m, block_n = program_tile(rows, width, BLOCK_M, BLOCK_N, 1)
    row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * row_stride + column[None, :] * column_stride
    kept = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
    kept *= dropout_factors(rng, threshold, scale, block_m, block_n, BLOCK_M, BLOCK_N)
    store(dz + row[:, None] * width + column[None, :], kept, inside)


@triton.jit
def _store_sums(sums, x, block, column, width, row_stride):
    at = block.to(tl.int64) * row_stride + column
    tl.store(sums + at, tl.sum(x, 0), mask=column < width)


@triton.jit
def hidden_gradient_kernel(
    dz,
    w_out,
    pre,
    dpre,
    hidden,
    sums,
    rows,
    width,
    depth,
    dz_row_stride,
    dz_depth_stride,
    w_depth_stride,
    w_column_stride,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """dpre and hidden from dz w_out and pre; sums (row blocks, width or 2 width): dpre summed over a block of rows."""
    block_m, block_n = program_tile(rows, width, BLOCK_M, BLOCK_N, GROUP_M)
    row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
    dh, _ = multiply(
        dz, w_out, 0, row, column, rows, width, 0, depth, dz_row_stride, dz_depth_stride, w_depth_stride,
        w_column_stride, False, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    inside = (row < rows)[:, None] & (column < width)[None, :]
    inner = width
    if GATED:
        inner = 2 * width
    at = row[:, None] * inner + column[None, :]
    value, slope = activate(tl.load(pre + at, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    if GATED:
        dup = dh * value
        store(dpre + at + width, dup, inside)
        if sums is not None:
            _store_sums(sums + width, dup, block_m, column, width, inner)
        up = tl.load(pre + at + width, mask=inside, other=0.0).to(tl.float32)
        value *= up
        dh *= up
    if hidden is not None:
        store(hidden + row[:, None] * width + column[None, :], value, inside)
    dh *= slope
    store(dpre + at, dh, inside)
    if sums is not None:
        _store_sums(sums, dh, block_m, column, width, inner)


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
    found = config("ffn_hidden_gradient_gated" if gated else "ffn_hidden_gradient", table_key(dz.dtype), dz.device)
    dpre = torch.empty_like(pre)
    hidden = pre.new_empty((rows, width)) if want_hidden else None
    row_blocks = triton.cdiv(rows, found.blocks["BLOCK_M"])
    sums = pre.new_empty((row_blocks, inner), dtype=torch.float32) if want_sums else None
    if pre.numel() > 0:
        hidden_gradient_kernel[(tiles(rows, width, found.blocks),)](
            dz, w_out, pre, dpre, hidden, sums, rows, width, depth, *dz.stride(), *w_out.stride(),
            ACTIVATION=GATES.get(activation, activation), GATED=gated, EVEN_K=depth % found.blocks["BLOCK_K"] == 0,
            **found.options,
        )  # fmt: skip
    return dpre, hidden, None if sums is None else sums.sum(0)
