"""What kernels compute with on the device: products, exponentials, dropout's random bits."""

from __future__ import annotations

import triton
import triton.language as tl

#: Whether kernels run in Triton's interpreter, on the CPU: fixed when their files are imported, as Triton has it.
INTERPRETED: bool = triton.knobs.runtime.interpret

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
_UPCAST: tl.constexpr = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """acc + a @ b, summed in float32. float32 operands keep nearly all of their precision, as three TF32 products each:
    one would miss the accuracy gate, and multiplications outside of the tensor cores take many times as long."""
    if _UPCAST:
        # Tensor cores add 4 to 16 products before they round, and a product has the sums of its transpose. The
        # interpreter's rounds after each, in an order that depends on how it lies; and it takes the bits of bfloat16
        # for integers.
        return acc + tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64).to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def wide(n):
    """A number as int64, be it a tensor, or a constant: an argument of 1, or a loop's counter in the interpreter."""
    return tl.full([], 0, tl.int64) + n


@triton.jit
def multiply_add(a, b, c):
    """a * b + c, rounded once, as the hardware's instruction does it."""
    if _UPCAST:
        # b may be a number of Python's, with more digits than the hardware would see.
        b = tl.zeros([], tl.float32) + b
        return (a.to(tl.float64) * b.to(tl.float64) + c).to(tl.float32)
    return tl.fma(a, b, c)


@triton.jit
def tanh(x):
    """tanh with full relative accuracy near 0 and no overflow."""
    square = x * x
    # Minimax fit of (tanh(x) - x) / x^3 over |x| < 0.625; beyond, 1 - 2 / (e^2x + 1) does not cancel.
    p = (-5.7049869e-3 * square + 2.0639086e-2) * square - 5.3739715e-2
    p = (p * square + 1.3331442e-1) * square - 3.3333281e-1
    small = x + x * square * p
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    return tl.where(square < 0.390625, small, tl.where(x < 0, -large, large))


@triton.jit
def tanh_derivative(x, value):
    """1 - tanh^2 at x, where ``value`` is the tanh, also where that would cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    part = 1.0 / (1.0 + e)
    return tl.where(x * x < 0.390625, 1.0 - value * value, 4.0 * e * part * part)


@triton.jit
def philox(rng, c0, c1, c2):
    """Four words of random bits for each counter (c0, c1, c2, offset), uint32; the twin of csrc/common/philox.h.

    rng points to (seed, offset), int64.
    """
    seed = tl.load(rng)
    c3 = c0 * 0 + tl.load(rng + 1).to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        a, b = c0, c2
        c0 = tl.umulhi(b, 0xCD9E8D57) ^ c1 ^ k0
        c2 = tl.umulhi(a, 0xD2511F53) ^ c3 ^ k1
        c1 = b * 0xCD9E8D57
        c3 = a * 0xD2511F53
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def philox_kept(rng, fours, row, plane, least, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether dropout keeps each element of a tile: whether its random bits are at least ``least``, uint32.

    fours (1, COLUMNS / 4): column // 4. row and plane: (ROWS, 1), or numbers. A counter serves four neighbours in a
    row, so it is computed for them together.
    """
    zero = tl.zeros((ROWS, COLUMNS // 4), tl.uint32)
    c0, c1, c2 = zero + fours.to(tl.uint32), zero + row.to(tl.uint32), zero + plane.to(tl.uint32)
    w0, w1, w2, w3 = philox(rng, c0, c1, c2)
    # A word is an index of two bits: the outer join makes the lower one, the last dimension.
    even = tl.join((w0 >= least).to(tl.int8), (w2 >= least).to(tl.int8))
    odd = tl.join((w1 >= least).to(tl.int8), (w3 >= least).to(tl.int8))
    return tl.reshape(tl.join(even, odd), (ROWS, COLUMNS)) != 0


@triton.jit
def cast(x, dtype: tl.constexpr):
    """float32 x in another type, rounded to nearest."""
    if _UPCAST and dtype == tl.bfloat16:
        # The interpreter cuts the low half off instead. NaN is left as it is.
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def store(pointers, x, mask):
    """float32 x to memory of any type, rounded to nearest."""
    tl.store(pointers, cast(x, pointers.dtype.element_ty), mask=mask)
