"""Matrix products of strided operands: what the kernels of the feed-forward block share, and the product by itself."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, config, multiprocessors
from .math import dot, philox, store

#: Up to so many rows a product is bound by reading its weights, once.
FEW_ROWS = 16


@triton.jit
def program_tile(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """The row block and the column block of this program.

    Programs that run at the same time form a square of tiles rather than a row, so that both operands stay in L2.
    """
    program = tl.program_id(0)
    across = tl.cdiv(columns, BLOCK_N)
    group = program // (GROUP_M * across)
    within = program % (GROUP_M * across)
    height = tl.minimum(tl.cdiv(rows, BLOCK_M) - group * GROUP_M, GROUP_M)
    block = group * GROUP_M + within % height
    return block, within // height


@triton.jit
def indices(block, SIZE: tl.constexpr):
    """The rows, or columns, of a block: 64 bits wide, for offsets."""
    return block.to(tl.int64) * SIZE + tl.arange(0, SIZE)


@triton.jit
def multiply(
    a,
    b,
    second,
    row,
    column,
    rows,
    columns,
    begin,
    end,
    a_row_stride,
    a_depth_stride,
    b_depth_stride,
    b_column_stride,
    GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The tile (row, column) of a @ b over the depths [begin, end), and if GATED that of a @ (b, second elements on).

    rows and columns bound the tile. EVEN_K: end - begin is a multiple of BLOCK_K, so no step needs a mask along it.
    """
    depth = begin + tl.arange(0, BLOCK_K).to(tl.int64)
    left = a + row[:, None] * a_row_stride + depth[None, :] * a_depth_stride
    right = b + depth[:, None] * b_depth_stride + column[None, :] * b_column_stride
    row_inside = (row < rows)[:, None]
    column_inside = (column < columns)[None, :]
    step = tl.full((), BLOCK_K, tl.int64)  # a stride may be so large that 32 bits do not hold its product
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_second = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range((end - begin) // BLOCK_K):
        a_tile = tl.load(left, mask=row_inside, other=0.0)
        acc = dot(a_tile, tl.load(right, mask=column_inside, other=0.0), acc)
        if GATED:
            acc_second = dot(a_tile, tl.load(right + second, mask=column_inside, other=0.0), acc_second)
        left += step * a_depth_stride
        right += step * b_depth_stride
    if not EVEN_K:
        inside = tl.arange(0, BLOCK_K) < (end - begin) % BLOCK_K
        a_tile = tl.load(left, mask=row_inside & inside[None, :], other=0.0)
        b_inside = column_inside & inside[:, None]
        acc = dot(a_tile, tl.load(right, mask=b_inside, other=0.0), acc)
        if GATED:
            acc_second = dot(a_tile, tl.load(right + second, mask=b_inside, other=0.0), acc_second)
    return acc, acc_second


@triton.jit
def add_bias(acc, bias, column, columns):
    return acc + tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]


@triton.jit
def dropout_factors(rng, threshold, scale, block_m, block_n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """For a tile, scale where an element stays, else 0. threshold is unsigned, passed as a signed number.

    A counter serves four neighbours in a row, so that it is computed once for them rather than by each.
    """
    row = indices(block_m, BLOCK_M)[:, None]
    zero = tl.zeros((BLOCK_M, BLOCK_N // 4), tl.uint32)
    column = indices(block_n, BLOCK_N // 4)[None, :].to(tl.uint32)
    w0, w1, w2, w3 = philox(rng, zero + column, zero + row.to(tl.uint32), zero + (row >> 32).to(tl.uint32))
    least = threshold.to(tl.uint32, bitcast=True)
    # A word is an index of two bits: the outer join makes the lower one, the last dimension.
    even = tl.join((w0 >= least).to(tl.int8), (w2 >= least).to(tl.int8))
    odd = tl.join((w1 >= least).to(tl.int8), (w3 >= least).to(tl.int8))
    kept = tl.reshape(tl.join(even, odd), (BLOCK_M, BLOCK_N))
    return tl.where(kept != 0, scale, 0.0)


@triton.jit
def product_kernel(
    a,
    b,
    out,
    rows,
    columns,
    depth,
    chunk,
    a_row_stride,
    a_depth_stride,
    b_depth_stride,
    b_column_stride,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """out (parts, rows, columns): a @ b, summed over one chunk of the depth in each part."""
    block_m, block_n = program_tile(rows, columns, BLOCK_M, BLOCK_N, GROUP_M)
    row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
    part = tl.program_id(1)
    begin = part * chunk
    end = tl.minimum(begin + chunk, depth)
    acc, _ = multiply(
        a, b, 0, row, column, rows, columns, begin, end, a_row_stride, a_depth_stride, b_depth_stride, b_column_stride,
        False, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    at = (part.to(tl.int64) * rows + row)[:, None] * columns + column[None, :]
    store(out + at, acc, (row < rows)[:, None] & (column < columns)[None, :])


def table_key(dtype: torch.dtype, rows: int = FEW_ROWS + 1) -> str:
    """The key of a product in the table: its own for few rows, and for float32, whose products are three."""
    return ("small_" if rows <= FEW_ROWS else "") + ("fp32" if dtype == torch.float32 else "half")


def tiles(rows: int, columns: int, blocks: dict[str, int]) -> int:
    return int(triton.cdiv(rows, blocks["BLOCK_M"]) * triton.cdiv(columns, blocks["BLOCK_N"]))


def parts(rows: int, columns: int, depth: int, found: Config, device: torch.device) -> int:
    """Among how many programs to share the sum of a tile: 1 where the tiles alone keep the device busy."""
    here, processors = tiles(rows, columns, found.blocks), multiprocessors(device)
    if rows > FEW_ROWS or here >= processors:
        return 1
    steps = max(1, triton.cdiv(depth, found.blocks["BLOCK_K"]))
    most = max(1, min(steps, 2 * processors // here))  # two programs on each multiprocessor
    return int(triton.cdiv(steps, triton.cdiv(steps, most)))  # no part is empty


def launch_product(a: Tensor, b: Tensor, out: Tensor, found: Config) -> None:
    """out (parts, rows, columns), contiguous: a @ b, the depth shared among the parts."""
    count, rows, columns = out.shape
    depth, block = a.shape[1], found.blocks["BLOCK_K"]
    chunk = triton.cdiv(triton.cdiv(depth, block), count) * block
    product_kernel[(tiles(rows, columns, found.blocks), count)](
        a, b, out, rows, columns, depth, chunk, *a.stride(), *b.stride(), EVEN_K=depth % block == 0, **found.options
    )


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the operands' dtype.

    On a GPU by torch, since there is nothing to fuse and nothing is faster, unless it would use TF32.
    """
    if a.is_cuda and not (a.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"):
        return torch.mm(a, b)
    out = a.new_empty((a.shape[0], b.shape[1]))
    if out.numel() > 0:
        found = config("ffn_product", table_key(a.dtype, a.shape[0]), a.device)
        launch_product(a, b, out.unsqueeze(0), found)
    return out
