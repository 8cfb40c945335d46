"""The feed-forward block: hidden = act(x w_in^T + b_in), out = residual + dropout(hidden w_out^T + b_out).

Two matrix products, with everything after each in its epilogue. A product of few rows (decoding) reads the weights once
and is bound by that: where its output has too few tiles to keep every multiprocessor reading, programs share the sum,
and a second kernel adds their parts in a fixed order and does the epilogue.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate
from .ffn_product import (
    Route,
    add_bias,
    dropout_factors,
    halves,
    indices,
    launch_product,
    multiply,
    parts,
    pieces,
    route,
    store_tile,
    table_key,
    tile_blocks,
    tile_range,
    tiles,
)
from .launch import config

#: A gated activation's function of the gate.
GATES = {"reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


class Dropout(NamedTuple):
    """rng: (seed, offset). An element stays, times scale, where its random bits, unsigned, are >= threshold."""

    rng: Tensor
    threshold: int
    scale: float

    @property
    def arguments(self) -> tuple[Tensor, int, float]:
        """As kernels take them: the threshold's 32 bits as a signed number, so that it always has the same type."""
        return self.rng, self.threshold - (self.threshold >> 31 << 32), self.scale


_NO_DROPOUT = (None, 0, 1.0)


@triton.jit
def _finish_in(
    gate,
    up,
    bias,
    pre,
    pre_up,
    hidden,
    block_m,
    block_n,
    rows,
    width,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Bias and activation of a tile of the first product; stores hidden and, if wanted, pre (gated: and pre_up)."""
    inner = width
    if GATED:
        inner = 2 * width
    if bias is not None:
        gate = add_bias(gate, bias, block_n, width)
        if GATED:
            up = add_bias(up, bias + width, block_n, width)
    if pre is not None:
        if GATED:
            store_tile(pre_up, up, block_m, block_n, rows, width, inner, TMA)
        store_tile(pre, gate, block_m, block_n, rows, width, inner, TMA)
    if hidden is not None:
        value, _ = activate(gate, ACTIVATION)
        if GATED:
            value *= up
        store_tile(hidden, value, block_m, block_n, rows, width, width, TMA)


@triton.jit
def _finish_out(
    acc,
    bias,
    residual,
    rng,
    out,
    threshold,
    scale,
    block_m,
    block_n,
    rows,
    width,
    residual_row_stride,
    residual_column_stride,
    TMA: tl.constexpr,
):
    """Bias, dropout and residual of a tile of the second product; stores out."""
    BLOCK_M: tl.constexpr = acc.shape[0]
    BLOCK_N: tl.constexpr = acc.shape[1]
    if bias is not None:
        acc = add_bias(acc, bias, block_n, width)
    if rng is not None:
        acc *= dropout_factors(rng, threshold, scale, block_m, block_n, BLOCK_M, BLOCK_N)
    if residual is not None:
        row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        at = row[:, None] * residual_row_stride + column[None, :] * residual_column_stride
        acc += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    store_tile(out, acc, block_m, block_n, rows, width, width, TMA)


@triton.jit
def in_kernel(
    x,
    x_row_stride,
    x_depth_stride,
    w_in,
    w_row_stride,
    w_depth_stride,
    bias,
    pre,
    pre_up,
    hidden,
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
    """hidden (rows, width) = act(x w_in^T + bias); gated: the gate's tile and the up projection's in one program."""
    first, last, step = tile_range(rows, width, BLOCK_M, BLOCK_N, PROGRAMS)
    for tile in tl.range(first, last, step, flatten=PROGRAMS > 0):
        block_m, block_n = tile_blocks(tile, rows, width, BLOCK_M, BLOCK_N, GROUP_M)
        acc = multiply(
            x, x_row_stride, x_depth_stride, w_in, w_depth_stride, w_row_stride, block_m, block_n, rows, width,
            0, depth, GATED, EVEN_K, TMA, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        gate, up = acc, acc
        if GATED:
            gate, up = halves(acc)
        gates, ups = pieces(gate, PIECES), pieces(up, PIECES)
        for i in tl.static_range(PIECES):
            _finish_in(
                gates[i], ups[i], bias, pre, pre_up, hidden, block_m, PIECES * block_n + i, rows, width, ACTIVATION,
                GATED, TMA,
            )  # fmt: skip


@triton.jit(do_not_specialize=["threshold"])
def out_kernel(
    hidden,
    hidden_row_stride,
    hidden_depth_stride,
    w_out,
    w_row_stride,
    w_depth_stride,
    bias,
    residual,
    rng,
    out,
    threshold,
    scale,
    rows,
    width,
    depth,
    residual_row_stride,
    residual_column_stride,
    EVEN_K: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """out (rows, width) = residual + dropout(hidden w_out^T + bias). out is contiguous."""
    first, last, step = tile_range(rows, width, BLOCK_M, BLOCK_N, PROGRAMS)
    for tile in tl.range(first, last, step, flatten=PROGRAMS > 0):
        block_m, block_n = tile_blocks(tile, rows, width, BLOCK_M, BLOCK_N, GROUP_M)
        acc = multiply(
            hidden, hidden_row_stride, hidden_depth_stride, w_out, w_depth_stride, w_row_stride, block_m, block_n,
            rows, width, 0, depth, False, EVEN_K, TMA, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        accs = pieces(acc, PIECES)
        for i in tl.static_range(PIECES):
            _finish_out(
                accs[i], bias, residual, rng, out, threshold, scale, block_m, PIECES * block_n + i, rows, width,
                residual_row_stride, residual_column_stride, TMA,
            )  # fmt: skip


@triton.jit
def _sum_parts(parts, at, count, part_stride, inside, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(count):
        acc += tl.load(parts + at, mask=inside, other=0.0)
        at += part_stride
    return acc


@triton.jit
def in_parts_kernel(
    parts,
    bias,
    pre,
    pre_up,
    hidden,
    count,
    rows,
    width,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What in_kernel does after its product, whose parts (count, rows, width, or 2 width if GATED) are added here."""
    block_m, block_n = tile_blocks(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, 1)
    row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    inner = width
    if GATED:
        inner = 2 * width
    at = row[:, None] * inner + column[None, :]
    part_stride = tl.full((), 1, tl.int64) * rows * inner
    gate = _sum_parts(parts, at, count, part_stride, inside, BLOCK_M, BLOCK_N)
    up = gate
    if GATED:
        up = _sum_parts(parts, at + width, count, part_stride, inside, BLOCK_M, BLOCK_N)
    _finish_in(gate, up, bias, pre, pre_up, hidden, block_m, block_n, rows, width, ACTIVATION, GATED, "")


@triton.jit(do_not_specialize=["threshold"])
def out_parts_kernel(
    parts,
    bias,
    residual,
    rng,
    out,
    threshold,
    scale,
    count,
    rows,
    width,
    residual_row_stride,
    residual_column_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What out_kernel does after its product, whose parts (count, rows, width) are added here."""
    block_m, block_n = tile_blocks(tl.program_id(0), rows, width, BLOCK_M, BLOCK_N, 1)
    row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    part_stride = tl.full((), 1, tl.int64) * rows * width
    acc = _sum_parts(parts, at, count, part_stride, inside, BLOCK_M, BLOCK_N)
    _finish_out(
        acc, bias, residual, rng, out, threshold, scale, block_m, block_n, rows, width, residual_row_stride,
        residual_column_stride, "",
    )  # fmt: skip


def first_product(
    x: Tensor, w_in: Tensor, bias: Tensor | None, activation: str, *, pre: Tensor | None, hidden: Tensor | None
) -> None:
    """Write the input of the activation and its output, each where it is wanted."""
    gated = activation in GATES
    width = w_in.shape[0] // 2 if gated else w_in.shape[0]
    rows, depth = x.shape
    if rows == 0 or width == 0:
        return
    act = GATES.get(activation, activation)
    pre_up = None
    if pre is not None and gated:
        pre, pre_up = pre[:, :width], pre[:, width:]
    kernel = "ffn_in_gated" if gated else "ffn_in"
    chosen = route(kernel, x, w_in, "nk", pre, pre_up, hidden, columns=width, gated=gated)
    count = parts(rows, width, depth, chosen.config, x.device)
    if count == 1:
        in_kernel[(chosen.grid(rows, width, x.device),)](
            *chosen.left(x), *chosen.right(w_in, "nk", gated=gated), bias, chosen.tiles(pre), chosen.tiles(pre_up),
            chosen.tiles(hidden), rows, width, depth, ACTIVATION=act, GATED=gated, **chosen.options(depth),
        )  # fmt: skip
        return
    sums = _sum_in_parts(x, w_in, count)
    found = config("ffn_in_parts", table_key(x.dtype, rows), x.device)
    in_parts_kernel[(tiles(rows, width, found.blocks),)](
        sums, bias, pre, pre_up, hidden, count, rows, width, ACTIVATION=act, GATED=gated, **found.options
    )


def second_product(
    hidden: Tensor, w_out: Tensor, bias: Tensor | None, residual: Tensor | None, dropout: Dropout | None, out: Tensor
) -> None:
    """Write out. hidden and out are contiguous."""
    (rows, depth), width = hidden.shape, w_out.shape[0]
    if out.numel() == 0:
        return
    chosen = route("ffn_out", hidden, w_out, "nk", out, columns=width)
    count = parts(rows, width, depth, chosen.config, hidden.device)
    rng, threshold, scale = dropout.arguments if dropout else _NO_DROPOUT
    residual_strides = residual.stride() if residual is not None else (0, 1)
    if count == 1:
        out_kernel[(chosen.grid(rows, width, hidden.device),)](
            *chosen.left(hidden), *chosen.right(w_out, "nk"), bias, residual, rng, chosen.tiles(out), threshold, scale,
            rows, width, depth, *residual_strides, **chosen.options(depth),
        )  # fmt: skip
        return
    sums = _sum_in_parts(hidden, w_out, count)
    found = config("ffn_out_parts", table_key(hidden.dtype, rows), hidden.device)
    out_parts_kernel[(tiles(rows, width, found.blocks),)](
        sums, bias, residual, rng, out, threshold, scale, count, rows, width, *residual_strides, **found.options
    )


def _sum_in_parts(a: Tensor, weights: Tensor, count: int) -> Tensor:
    """(count, rows, out features), float32: a @ weights^T, its sum shared among count programs."""
    sums = a.new_empty((count, a.shape[0], weights.shape[0]), dtype=torch.float32)
    found = config("ffn_product", table_key(a.dtype, a.shape[0]), a.device)
    launch_product(a, weights.t(), sums, Route(found, ""))
    return sums
