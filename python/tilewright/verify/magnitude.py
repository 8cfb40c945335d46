"""Scores and sinks of any magnitude that float32 holds. A row then has the value of its largest key, or of several that
are as large, and nothing else: what is to be found is an exponent above 0, in the gradients as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..ops.attention import attention
from .substitute import difference

#: Of q's and k's numbers, by dtype: up to where a product of 32 of them is finite in float32.
LARGE = (2.0**17, 2.0**30, 2.0**58)
MAGNITUDES = {torch.float32: LARGE, torch.bfloat16: LARGE, torch.float16: (2.0**10, 2.0**16)}
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"causal": "bottom_right"}, {"mask": "zeros"}, {"dropout_p": 0.3})
#: Of numbers around 1: the largest and smallest factors that are accepted.
FACTORS: tuple[dict[str, Any], ...] = (
    {"scale": 2.0**100}, {"scale": -(2.0**100)}, {"scale": 2.0**-126}, {"softcap": 2.0**97}, {"softcap": 2.0**-97},
)  # fmt: skip


def sink_problems(backend: str, dtype: torch.dtype, device: str = "cpu") -> Iterator[str]:
    """A sink's weight in its row, which is the gradient of lse. Far above the keys it is a product of two exponentials,
    of exponents whose rounding is as large as they are."""
    q = torch.zeros(1, 64, 1, 8, dtype=dtype, device=device)  # a row with one key, of score 0, in each head
    sinks = torch.linspace(-20, 79, 64).to(device).requires_grad_()
    _, lse = attention(q, q, q, sinks=sinks, return_lse=True, backend=backend)
    (weights,) = torch.autograd.grad(lse.sum(), sinks)
    exact = sinks.detach().double().sigmoid()
    errors = (weights.double() / exact - 1).abs() / torch.finfo(torch.float32).eps
    # An exponent of 79 in base 2, whose unit is 64 of float32's, is rounded to half of that: 32, unless it goes out.
    for sink, weight, error in zip(sinks.tolist(), weights.tolist(), errors.tolist(), strict=True):
        if not error <= 8.0:
            yield f"a sink of {sink:.3g} above one key of 0 weighs {weight:.8g}, which is wrong by {error:.3g} units"


def problems(backend: str, dtype: torch.dtype, device: str = "cpu") -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, width: int) -> torch.Tensor:
        return torch.randn(1, 2, rows, width, generator=generator, dtype=torch.float64, device="cpu")

    for magnitude in (1.0, *MAGNITUDES[dtype]):
        for options in FACTORS if magnitude == 1.0 else OPTIONS:
            # Numbers of few bits, whose products and sums are exact, so that all agree on which key is the largest.
            q, k = (draw(n, 32).mul(4).round().clamp(-7, 7) / 8 * magnitude for n in (21, 40))
            v, dout = draw(40, 16), draw(21, 16)
            leaves = [t.to(device, dtype).requires_grad_() for t in (q, k, v)]
            given = {**options, "mask": torch.zeros(1, 1, 21, 40, device=device)} if "mask" in options else options
            torch.manual_seed(0)
            out: Any = attention(*leaves, **given, backend=backend)
            gradients = torch.autograd.grad(out, leaves, dout.to(device, dtype))
            wide = [t.detach().double().requires_grad_() for t in leaves]
            torch.manual_seed(0)
            exact: Any = attention(*wide, **{**given, **({"mask": given["mask"].double()} if "mask" in given else {})},
                              backend="reference")  # fmt: skip
            (dv,) = torch.autograd.grad(exact, wide[2:], dout.to(device, dtype).double())
            where = f"q and k of {magnitude:g} in {dtype}, {options}"
            for name, found, expected in (("out", out, exact), ("dv", gradients[2], dv)):
                problem = difference(found.detach(), expected.detach().to(dtype))
                if problem:
                    yield f"{name} {problem}: {where}"
            for name, gradient in zip(("dq", "dk"), gradients, strict=False):
                # A scale may take it out of float16's range.
                if gradient.isnan().any() or (options not in FACTORS and gradient.isinf().any()):
                    yield f"{name} is not finite: {where}"
