"""Matrix products of strided operands: what the kernels of the feed-forward block share, and the product by itself.

A product of many rows reads its operands and stores its results with TMA, the copy engine of Hopper and later chips, in
whole tiles, where the chip and the layout allow it, and through pointers where not: `route` decides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .descriptor import describe, has_tma
from .launch import Config, config, multiprocessors
from .math import cast, dot, philox_kept, store

#: Up to so many rows a product is bound by reading its weights, once.
FEW_ROWS = 16


@triton.jit
def tile_range(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PROGRAMS: tl.constexpr):
    """The first tile of this program, where its tiles end, and the step from one to the next."""
    first = tl.program_id(0)
    if PROGRAMS:
        last = tl.cdiv(rows, BLOCK_M) * tl.cdiv(columns, BLOCK_N)
        step = tl.num_programs(0)
    else:
        last = first + 1  # with a step of 1, so that the compiler sees that there is no loop
        step = 1
    return first, last, step


@triton.jit
def tile_blocks(tile, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """The row block and the column block of a tile.

    Tiles that are computed at the same time form a square rather than a row, so that both operands stay in L2.
    """
    across = tl.cdiv(columns, BLOCK_N)
    group = tile // (GROUP_M * across)
    within = tile % (GROUP_M * across)
    height = tl.minimum(tl.cdiv(rows, BLOCK_M) - group * GROUP_M, GROUP_M)
    block = group * GROUP_M + within % height
    return block, within // height


@triton.jit
def indices(block, SIZE: tl.constexpr):
    """The rows, or columns, of a block: 64 bits wide, for offsets."""
    return block.to(tl.int64) * SIZE + tl.arange(0, SIZE)


@triton.jit
def _left_box(a, row, depth, TMA: tl.constexpr):
    """(BLOCK_M, BLOCK_K) of a described a, 0 beyond its end."""
    return a.load([row, depth]) if TMA[0] == "k" else tl.trans(a.load([depth, row]))


@triton.jit
def _right_box(b, depth, column, GATED: tl.constexpr, TMA: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """(BLOCK_K, BLOCK_N) of a described b, 0 beyond its end. If GATED b is described as (2, columns, depth)."""
    if GATED:
        box = tl.trans(tl.reshape(b.load([0, column, depth]), (BLOCK_N, BLOCK_K)))
    elif TMA[1] == "k":
        box = tl.trans(b.load([column, depth]))
    else:
        box = b.load([depth, column])
    return box


@triton.jit
def multiply(
    a,
    a_row_stride,
    a_depth_stride,
    b,
    b_depth_stride,
    b_column_stride,
    block_m,
    block_n,
    rows,
    columns,
    begin,
    end,
    GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of a @ b over the depths [begin, end). rows and columns bound it.

    GATED: b has the gate's columns and then as many of the up projection's, and the tile BLOCK_N of either; in one
    product, since two would read a's blocks from shared memory twice. EVEN_K: end - begin is a multiple of BLOCK_K, so
    no step needs a mask along it. With TMA (see Route) a and b are descriptors, which know their strides, and end is
    a's depth.
    """
    WIDTH: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    acc = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    if TMA != "":
        for at in tl.range(begin, end, BLOCK_K):
            a_tile = _left_box(a, block_m * BLOCK_M, at, TMA)
            acc = dot(a_tile, _right_box(b, at, block_n * BLOCK_N, GATED, TMA, WIDTH, BLOCK_K), acc)
    else:
        row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
        if GATED:
            across = tl.arange(0, WIDTH)
            column = block_n.to(tl.int64) * BLOCK_N + across % BLOCK_N
        row_inside = (row < rows)[:, None]
        column_inside = (column < columns)[None, :]
        if GATED:
            column += (across // BLOCK_N).to(tl.int64) * columns
        depth = begin + tl.arange(0, BLOCK_K).to(tl.int64)
        left = a + row[:, None] * a_row_stride + depth[None, :] * a_depth_stride
        right = b + depth[:, None] * b_depth_stride + column[None, :] * b_column_stride
        step = tl.full((), BLOCK_K, tl.int64)  # a stride may be so large that 32 bits do not hold its product
        for _ in range((end - begin) // BLOCK_K):
            a_tile = tl.load(left, mask=row_inside, other=0.0)
            acc = dot(a_tile, tl.load(right, mask=column_inside, other=0.0), acc)
            left += step * a_depth_stride
            right += step * b_depth_stride
        if not EVEN_K:
            inside = tl.arange(0, BLOCK_K) < (end - begin) % BLOCK_K
            a_tile = tl.load(left, mask=row_inside & inside[None, :], other=0.0)
            acc = dot(a_tile, tl.load(right, mask=column_inside & inside[:, None], other=0.0), acc)
    return acc


@triton.jit
def halves(tile):
    """The left and the right half of a tile."""
    pairs = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    return tl.split(tl.permute(pairs, (0, 2, 1)))


@triton.jit
def pieces(tile, COUNT: tl.constexpr):
    """A tile's 1, 2 or 4 pieces from left to right: an epilogue needs registers and shared memory for one at a time."""
    tl.static_assert(COUNT == 1 or COUNT == 2 or COUNT == 4)
    if COUNT == 4:
        left, right = halves(tile)
        found = halves(left) + halves(right)
    elif COUNT == 2:
        found = halves(tile)
    else:
        found = (tile,)
    return found


@triton.jit
def load_tile(
    t, block_m, block_n, rows, columns, row_stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr
):
    """The counterpart of store_tile, in float32."""
    if TMA != "":
        tile = t.load([block_m * BLOCK_M, block_n * BLOCK_N])
    else:
        row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        tile = tl.load(t + row[:, None] * row_stride + column[None, :], mask=inside, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def store_tile(t, tile, block_m, block_n, rows, columns, row_stride, TMA: tl.constexpr):
    """Write a float32 tile of a matrix (rows, columns) with a unit column stride; with TMA t is its descriptor."""
    BLOCK_M: tl.constexpr = tile.shape[0]
    BLOCK_N: tl.constexpr = tile.shape[1]
    if TMA != "":
        t.store([block_m * BLOCK_M, block_n * BLOCK_N], cast(tile, t.dtype))
    else:
        row, column = indices(block_m, BLOCK_M), indices(block_n, BLOCK_N)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        store(t + row[:, None] * row_stride + column[None, :], tile, inside)


@triton.jit
def add_bias(acc, bias, block_n, columns):
    column = indices(block_n, acc.shape[1])
    return acc + tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]


@triton.jit
def dropout_factors(rng, threshold, scale, block_m, block_n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """For a tile, scale where an element stays, else 0. threshold is unsigned, passed as a signed number."""
    row = indices(block_m, BLOCK_M)[:, None]
    fours = indices(block_n, BLOCK_N // 4)[None, :]
    least = threshold.to(tl.uint32, bitcast=True)
    kept = philox_kept(rng, fours, row.to(tl.uint32), (row >> 32).to(tl.uint32), least, BLOCK_M, BLOCK_N)
    return tl.where(kept, scale, 0.0)


@triton.jit
def product_kernel(
    a,
    a_row_stride,
    a_depth_stride,
    b,
    b_depth_stride,
    b_column_stride,
    out,
    rows,
    columns,
    depth,
    chunk,
    EVEN_K: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """out (parts, rows, columns): a @ b, summed over one chunk of the depth in each part; one part with TMA."""
    first, last, step = tile_range(rows, columns, BLOCK_M, BLOCK_N, PROGRAMS)
    for tile in tl.range(first, last, step, flatten=PROGRAMS > 0):
        block_m, block_n = tile_blocks(tile, rows, columns, BLOCK_M, BLOCK_N, GROUP_M)
        part = tl.program_id(1)
        begin = part * chunk
        end = tl.minimum(begin + chunk, depth)
        acc = multiply(
            a, a_row_stride, a_depth_stride, b, b_depth_stride, b_column_stride, block_m, block_n, rows, columns,
            begin, end, False, EVEN_K, TMA, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        to = out
        if TMA == "":
            to = out + part.to(tl.int64) * rows * columns
        parts_of_tile = pieces(acc, PIECES)
        for i in tl.static_range(PIECES):
            store_tile(to, parts_of_tile[i], block_m, PIECES * block_n + i, rows, columns, columns, TMA)


def table_key(dtype: torch.dtype, rows: int = FEW_ROWS + 1) -> str:
    """The key of a product in the table: its own for few rows, and for float32, whose products are three."""
    return ("small_" if rows <= FEW_ROWS else "") + ("fp32" if dtype == torch.float32 else "half")


class Route(NamedTuple):
    """How a product is launched.

    tma: "" where tensors are passed as pointers and strides. Else they are passed as descriptors, and it names the
    dimension of each operand whose elements are neighbours: "m" or "k" of a (m, k), "n" or "k" of b (k, n).
    """

    config: Config
    tma: str

    def left(self, a: Tensor) -> tuple[object, ...]:
        """a and its strides, as arguments."""
        if not self.tma:
            return a, *a.stride()
        m, k = self.config.blocks["BLOCK_M"], self.config.blocks["BLOCK_K"]
        return describe(a, (m, k)) if self.tma[0] == "k" else describe(a.t(), (k, m)), 0, 0

    def right(self, b: Tensor, names: str, *, gated: bool = False) -> tuple[object, ...]:
        """b, of the dimensions `names`, and its strides, as arguments."""
        if not self.tma:
            return b, *b.stride()
        n, k = self.config.blocks["BLOCK_N"], self.config.blocks["BLOCK_K"]
        if gated:
            return describe(b.unflatten(0, (2, -1)), (2, n, k)), 0, 0
        if self.tma[1] != names[1]:
            b = b.t()
        return describe(b, (n, k) if self.tma[1] == "k" else (k, n)), 0, 0

    def tiles(self, t: Tensor | None) -> object:
        """As an argument, a matrix that an epilogue reads or writes."""
        if t is None or not self.tma:
            return t
        blocks = self.config.blocks
        return describe(t, (blocks["BLOCK_M"], blocks["BLOCK_N"] // blocks["PIECES"]))

    def options(self, depth: int) -> dict[str, int | str]:
        """The constants of a launch."""
        even = self.tma != "" or depth % self.config.blocks["BLOCK_K"] == 0
        return {"EVEN_K": even, "TMA": self.tma, **self.config.options}

    def grid(self, rows: int, columns: int, device: torch.device) -> int:
        count, programs = tiles(rows, columns, self.config.blocks), self.config.blocks["PROGRAMS"]
        return min(count, programs * multiprocessors(device)) if programs else count


def _neighbours(t: Tensor, names: str) -> str:
    """The name of the dimension whose elements are neighbours, of a matrix of a half type that TMA can read; else "".

    Its address and its rows, or columns, have to start at multiples of 16 bytes, and no stride may be 0.
    """
    row, column = t.stride()
    if t.data_ptr() % 16 == 0 and t.numel() > 0:
        if column == 1 and row > 0 and row % 8 == 0:
            return names[1]
        if row == 1 and column > 0 and column % 8 == 0:
            return names[0]
    return ""


def route(
    kernel: str, a: Tensor, b: Tensor, names: str, *tiled: Tensor | None, columns: int, gated: bool = False
) -> Route:
    """The one place where TMA is chosen: for a half type, on a chip that has it, when the addresses and strides of all
    tensors are multiples of 16 bytes, and when there is a tile for every multiprocessor. With fewer, smaller tiles keep
    more of them busy, and a launch without descriptors is cheaper.

    names: of b's dimensions, "kn" or "nk". gated: b has the gate's columns and then as many of the up projection's.
    tiled: what the epilogue reads or writes by tiles.
    """
    key = table_key(a.dtype, a.shape[0])
    if key == "half" and has_tma(a.device):
        found = config(kernel, "half_tma", a.device)
        if tiles(a.shape[0], columns, found.blocks) >= multiprocessors(a.device):
            tma = _neighbours(a, "mk") + _neighbours(b, names)
            # Only in rows of a weight are blocks of gate and up columns one block of a descriptor.
            suitable = len(tma) == 2 and (tma[1] == "k" or not gated)
            if suitable and all(t is None or _neighbours(t, "mn") == "n" for t in tiled):
                return Route(found, tma)
    return Route(config(kernel, key, a.device), "")


def tiles(rows: int, columns: int, blocks: dict[str, int]) -> int:
    return -(-rows // blocks["BLOCK_M"]) * -(-columns // blocks["BLOCK_N"])


def parts(rows: int, columns: int, depth: int, found: Config, device: torch.device) -> int:
    """Among how many programs to share the sum of a tile: 1 where the tiles alone keep the device busy."""
    here, processors = tiles(rows, columns, found.blocks), multiprocessors(device)
    if rows > FEW_ROWS or here >= processors:
        return 1
    steps = max(1, triton.cdiv(depth, found.blocks["BLOCK_K"]))
    most = max(1, min(steps, 2 * processors // here))  # two programs on each multiprocessor
    return int(triton.cdiv(steps, triton.cdiv(steps, most)))  # no part is empty


def launch_product(a: Tensor, b: Tensor, out: Tensor, chosen: Route) -> None:
    """out (parts, rows, columns), contiguous: a @ b, the depth shared among the parts."""
    count, rows, columns = out.shape
    depth, block = a.shape[1], chosen.config.blocks["BLOCK_K"]
    chunk = triton.cdiv(triton.cdiv(depth, block), count) * block
    product_kernel[(chosen.grid(rows, columns, a.device), count)](
        *chosen.left(a), *chosen.right(b, "kn"), chosen.tiles(out[0] if chosen.tma else out), rows, columns, depth,
        chunk, **chosen.options(depth),
    )  # fmt: skip


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the operands' dtype.

    On a GPU by torch, since there is nothing to fuse and nothing is faster, unless it would use TF32.
    """
    if a.is_cuda and not (a.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"):
        return torch.mm(a, b)
    out = a.new_empty((a.shape[0], b.shape[1]))
    if out.numel() > 0:
        launch_product(a, b, out.unsqueeze(0), route("ffn_product", a, b, "kn", out, columns=b.shape[1]))
    return out
