"""What a case is, and the tensors it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: In front of and behind every input, so that reading or writing past a tensor is found out. One cache line.
GUARD_BYTES = 64

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class Maker:
    """Makes a case's tensors from a seed, each inside a larger block of memory filled with NaN.

    Two makers with different seeds make tensors of the same shapes and strides in blocks of the same sizes. Numbers are
    drawn on the CPU, so that they are the same on every device, and placed on ``device``.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.dtype = dtype
        self.device = torch.device(device)
        self.blocks: list[Tensor] = []
        self._draw: dict[str, Any] = {"generator": torch.Generator("cpu").manual_seed(seed), "device": "cpu"}

    def place(self, values: Tensor, *, order: Sequence[int] | None = None, pad: int = 0, offset: int = 0) -> Tensor:
        """``values`` in guarded memory.

        order: the dimensions from the outermost in memory to the innermost; None is row-major.
        pad: unused elements after each run of the innermost dimension. offset: elements past the 64-byte boundary.
        """
        order = tuple(range(values.dim())) if order is None else tuple(order)
        strides, step = [1] * values.dim(), 1
        for position, d in enumerate(reversed(order)):
            strides[d] = step
            step *= values.shape[d] + (pad if position == 0 else 0)
        guard = GUARD_BYTES // values.element_size()
        block = torch.empty(2 * guard + offset + step, dtype=values.dtype, device=self.device)
        block.fill_(_poison(values.dtype))
        self.blocks.append(block)
        return block.as_strided(values.shape, strides, guard + offset).copy_(values)

    def draw_normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal values, not yet placed. Drawn in float64: every dtype gets the same numbers, rounded."""
        return torch.randn(shape, dtype=torch.float64, **self._draw).mul_(scale).to(self.dtype)

    def draw_integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers in [low, high], as floats of the case's dtype."""
        return torch.randint(low, high + 1, shape, **self._draw).to(self.dtype)

    def draw_bool(self, probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, **self._draw) < probability

    def normal(self, *shape: int, scale: float = 1.0, **memory: Any) -> Tensor:
        return self.place(self.draw_normal(*shape, scale=scale), **memory)

    def int32(self, values: Sequence[Any]) -> Tensor:
        return self.place(torch.tensor(values, dtype=torch.int32, device="cpu"))

    def permutation(self, n: int) -> list[int]:
        numbers: list[int] = torch.randperm(n, **self._draw).tolist()
        return numbers


def _poison(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return math.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max


#: Makes the arguments of the op's public function, by name, without ``backend``.
MakeArguments = Callable[[Maker], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One call of a public op.

    op, name, dtype   ``op/name/dtype`` identifies a case
    make              its arguments, by name, from a Maker
    gradients         arguments whose gradient is computed and compared
    output_gradients  outputs that get a gradient; the first one when empty
    upstream          the outputs' gradients: "dense", "expanded" (one number of stride 0, as sum() makes), "rows" (one
                      row for all) or "transposed" (the last two dimensions swapped in memory)
    bitwise           two runs must agree bit for bit
    spec              what the case was built from, for reports
    """

    op: str
    name: str
    dtype: torch.dtype
    make: MakeArguments
    gradients: tuple[str, ...] = ()
    output_gradients: tuple[str, ...] = ()
    upstream: str = "dense"
    bitwise: bool = False
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.op}/{self.name}/{DTYPE_NAMES[self.dtype]}"
