"""Activations of the feed-forward block with their derivatives."""

from __future__ import annotations

import triton
import triton.language as tl

from .math import LOG2E, multiply_add


@triton.jit
def _reciprocal(x):
    """1 / x for x between 1 and 1e38, nearly to the last bit: four instructions, where a division takes eight."""
    root = tl.rsqrt(x)
    y = root * root
    return y - y * multiply_add(x, y, -1.0)


@triton.jit
def _logistic(minus_x_log2e):
    """s(x) = 1 / (1 + exp(-x)) and s(-x), without cancellation on either side, of -x log2(e).

    The bound keeps exp(-x) finite; s(x) is at least 1e-38. exp2 is one instruction, exp four.
    """
    e = tl.exp2(tl.minimum(minus_x_log2e, 126.0))
    below = _reciprocal(1.0 + e)
    return below, e * below


@triton.jit
def _normal(x):
    """The normal distribution function and its density.

    The fits are those of csrc/cpu/ffn_math.h: 1/2 + x p(x^2) in the middle, density times t q(t) in the tails, where
    1 + erf would cancel for negative x.
    """
    square = x * x
    size = tl.abs(x)
    p = 4.1155595168e-7 * square - 8.7183036851e-6
    p = p * square + 0.00011435638927
    p = p * square - 0.00118648849
    p = p * square + 0.0099732413073
    p = p * square - 0.066490335027
    p = p * square + 0.39894227934
    t = _reciprocal(size + 2.0)
    q = -37.689055107 * t + 54.130451514
    q = q * t - 25.064888067
    q = q * t + 1.0760611846
    q = q * t + 0.47706043671
    q = q * t + 1.2170487308
    q = q * t + 0.79717849063
    q = q * t + 0.39895274655
    e = tl.exp2(square * (-0.5 * LOG2E))
    tail = e * t * q
    return tl.where(size < 1.5, x * p + 0.5, tl.where(x < 0, tail, 1.0 - tail)), e * 0.3989422804014327


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """act(x) and act'(x) of a float32 block; what the caller does not use is not computed. NaN stays NaN."""
    if ACTIVATION == "relu":
        value = tl.where(x < 0, 0.0, x)
        slope = tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "relu2":
        positive = tl.where(x < 0, 0.0, x)
        value = positive * positive
        slope = 2.0 * positive
    elif ACTIVATION == "gelu":
        below, density = _normal(x)
        value = x * below
        slope = below + x * density
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 is the logistic function of 2u, u = sqrt(2 / pi) (x + 0.044715 x^3), and does not cancel.
        square = x * x
        below, above = _logistic(x * (square * (-1.5957691216057308 * 0.044715 * LOG2E) - 1.5957691216057308 * LOG2E))
        value = x * below
        slope = below + value * above * 1.5957691216057308 * (square * 0.134145 + 1.0)
    else:
        tl.static_assert(ACTIVATION == "silu")
        below, above = _logistic(x * -LOG2E)
        value = x * below
        slope = below + value * above
    return value, slope
