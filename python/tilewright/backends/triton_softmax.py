"""softmax and log_softmax in Triton: from a call's strides to a launch of triton_kernels/softmax.py.

Row dimensions that all tensors step through evenly are merged. Up to three that remain are the kernels' own; a call
with more of them is launched once for every index of the outermost ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..ops._features import broadcast_strides
from ..ops.softmax import SoftmaxCall, causal_shift
from ..registry import Implementation
from ..triton_kernels import keys
from ..triton_kernels import softmax as kernels
from ..triton_kernels.launch import config, keeps_configurations, multiprocessors
from ..triton_kernels.softmax_table import WIDEST
from .triton import on_device, unsupported

keys.settle()

Ints = tuple[int, ...]

_ROW_DIMS = 3
_MAX_PIECES = 128
#: From here on indices and offsets, also those that a tile has behind a tensor's end, are computed in 64 bits.
_WIDE = 2**31 - 2**20


class Plan(NamedTuple):
    """How to launch for one geometry.

    dim: where there are too many row dimensions, the one to go through in Python; else None, and the rest is set.
    sizes: middle, inner, columns. strides: outer, middle, inner, column, for each tensor in turn.
    steps, pieces: tiles in a piece, and pieces of a row; 0 where the row stays in registers.
    """

    dim: int | None
    kernel: Any = None
    grid: tuple[int, ...] = ()
    sizes: Ints = ()
    strides: Ints = ()
    options: dict[str, Any] = {}  # noqa: RUF012 - never written
    steps: int = 0
    pieces: int = 0


class _Rows(NamedTuple):
    """Row dimensions after merging, outermost first: their sizes, the first tensor dimension of each, and per tensor
    their strides."""

    sizes: list[int]
    dims: list[int]
    strides: list[list[int]]


def _merge_rows(shape: Ints, dim: int, strides: Sequence[Ints], causal: bool) -> _Rows:
    """In the first tensor's memory order, except that a causal bound's rows come last and by themselves: the kernel
    reads the row's index from there."""
    last = len(shape) - 2 if causal else -1
    order = [d for d in range(len(shape)) if d not in (dim, last) and shape[d] > 1]
    order.sort(key=lambda d: -strides[0][d])
    rows = _Rows([], [], [[] for _ in strides])
    for d in [*order, last] if causal else order:
        steps = [s[d] for s in strides]
        if rows.sizes and d != last and all(r[-1] == s * shape[d] for r, s in zip(rows.strides, steps, strict=True)):
            rows.sizes[-1] *= shape[d]
            for r, s in zip(rows.strides, steps, strict=True):
                r[-1] = s
        else:
            rows.sizes.append(shape[d])
            rows.dims.append(d)
            for r, s in zip(rows.strides, steps, strict=True):
                r.append(s)
    return rows


def _span(shape: Ints, strides: Ints) -> int:
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


@keeps_configurations  # type: ignore[untyped-decorator] # its module has no types for mypy
@functools.lru_cache(maxsize=4096)
def plan(name: str, shape: Ints, dim: int, strides: tuple[Ints, ...], causal: bool, device: torch.device) -> Plan:
    """For tensors of this shape with these strides. name: "softmax_forward" or "softmax_backward"."""
    rows = _merge_rows(shape, dim, strides, causal)
    missing = _ROW_DIMS - len(rows.sizes)
    if missing < 0:
        return Plan(dim=rows.dims[0])
    sizes = [1] * missing + rows.sizes
    steps = [[0] * missing + r + [s[dim]] for r, s in zip(rows.strides, strides, strict=True)]
    columns = shape[dim]
    across = steps[0][3] != 1 and steps[0][2] == 1 and columns > 1
    if not causal and not across:  # the order of rows is free: the largest dimension inside fills the tiles best
        order = sorted(range(_ROW_DIMS), key=sizes.__getitem__)
        sizes, steps = [sizes[d] for d in order], [[*(s[d] for d in order), s[3]] for s in steps]
    outer, middle, inner = sizes
    looped = columns > WIDEST[name][across]
    if looped:
        found = config(f"{name}_looped", "across" if across else "", device)
    else:
        found = config(name, f"{'across ' if across else ''}{triton.next_power_of_2(columns)}", device)
    block = min(found.blocks["ROWS"], triton.next_power_of_2(inner))
    programs = outer * middle * triton.cdiv(inner, block)
    wide = max(outer * middle * inner, columns, *(_span(shape, s) for s in strides)) >= _WIDE
    done = Plan(
        None,
        getattr(kernels, f"{name}_looped" if looped else name),
        (programs,),
        (middle, inner, columns),
        tuple(s for step in steps for s in step),
        {**found.options, "ROWS": block, "CAUSAL": causal, "WIDE": wide},
    )
    if not looped:
        return done
    tiles = triton.cdiv(columns, found.blocks["COLUMNS"])
    pieces = _pieces(programs, tiles, multiprocessors(device))
    return done._replace(grid=(programs, pieces), steps=triton.cdiv(tiles, pieces), pieces=pieces)


def _pieces(programs: int, tiles: int, processors: int) -> int:
    """Into how many pieces to cut rows so that all processors are busy; a power of two."""
    free = min(processors // programs, tiles, _MAX_PIECES)
    return 1 << (free.bit_length() - 1) if free > 1 else 1


def _launch(
    p: Plan, tensors: tuple[Tensor | None, ...], numbers: tuple[Any, ...], statistics: int, **constants: Any
) -> None:
    """statistics: how many numbers a piece of a row hands to the merge."""
    if p.pieces == 0:
        p.kernel[p.grid](*tensors, *numbers, *p.sizes, *p.strides, **constants, **p.options)
        return
    partial = None
    phases = [kernels.WHOLE]
    if p.pieces > 1:
        first = tensors[0]
        assert first is not None
        partial = first.new_empty(statistics * p.grid[0] * p.options["ROWS"] * p.pieces, dtype=torch.float32)
        phases = [kernels.GATHER, kernels.WRITE]
    for phase in phases:
        p.kernel[p.grid](
            *tensors, partial, *numbers, *p.sizes, p.steps, *p.strides,
            PHASE=phase, PIECES=p.pieces, **constants, **p.options,
        )  # fmt: skip


def _run_forward(x: Tensor, y: Tensor, mask: Tensor | None, call: SoftmaxCall, dim: int, shift: int, log: bool) -> None:
    strides = (x.stride(), y.stride(), (0,) * x.dim() if mask is None else broadcast_strides(mask))
    p = plan("softmax_forward", x.shape, dim, strides, call.causal is not None, x.device)
    if p.dim is not None:
        for i in range(x.shape[p.dim]):
            part = None if mask is None else mask.select(p.dim, i if mask.shape[p.dim] > 1 else 0)
            _run_forward(x.select(p.dim, i), y.select(p.dim, i), part, call, dim - (p.dim < dim), shift, log)
        return
    bool_mask = mask is not None and mask.dtype == torch.bool
    _launch(p, (x, y, mask), (call.scale, shift), 2, LOG=log, BOOL_MASK=bool_mask)


def _forward(call: SoftmaxCall, log: bool) -> tuple[Tensor]:
    x, mask = call.x, call.mask
    y = torch.empty_like(x)
    if x.numel() > 0:
        shift = 0 if call.causal is None else causal_shift(call)
        with on_device(x):
            if x.dim() == 0:
                _run_forward(x[None], y[None], None if mask is None else mask[None], call, 0, shift, log)
            else:
                _run_forward(x, y, mask, call, call.dim, shift, log)
    return (y,)


def _run_backward(
    y: Tensor, dy: Tensor, dx: Tensor | None, ds: Tensor | None, call: SoftmaxCall, dim: int, shift: int, log: bool
) -> None:
    out = dx if dx is not None else ds
    assert out is not None
    strides = (y.stride(), dy.stride(), out.stride())
    p = plan("softmax_backward", y.shape, dim, strides, call.causal is not None, y.device)
    if p.dim is not None:
        for i in range(y.shape[p.dim]):
            dx_i, ds_i = (None if t is None else t.select(p.dim, i) for t in (dx, ds))
            _run_backward(y.select(p.dim, i), dy.select(p.dim, i), dx_i, ds_i, call, dim - (p.dim < dim), shift, log)
        return
    _launch(p, (y, dy, dx, ds), (call.scale, shift), 1, LOG=log)


def _backward(
    call: SoftmaxCall, outputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...], wanted: Sequence[bool], log: bool
) -> tuple[Tensor | None, ...]:
    y, dy, mask = outputs[0], grads[0], call.mask
    assert dy is not None
    dx = torch.empty_like(y) if wanted[0] else None
    # The mask's gradient is that of the scores, summed where the mask is broadcast, and rounded once.
    ds = None
    if wanted[1]:
        assert mask is not None
        ds = torch.empty_like(y, dtype=mask.dtype if mask.shape == y.shape else torch.float32)
    if y.numel() > 0:
        shift = 0 if call.causal is None else causal_shift(call)
        with on_device(y):
            if y.dim() == 0:
                dx_1, ds_1 = (None if t is None else t[None] for t in (dx, ds))
                _run_backward(y[None], dy[None], dx_1, ds_1, call, 0, shift, log)
            else:
                _run_backward(y, dy, dx, ds, call, call.dim, shift, log)
    if ds is None or mask is None:
        return dx, None
    return dx, ds if mask.shape == y.shape else ds.sum_to_size(mask.shape).to(mask.dtype)


def _implementation(log: bool) -> Implementation:
    forward: Callable[..., Any] = functools.partial(_forward, log=log)
    return Implementation(forward, functools.partial(_backward, log=log), unsupported)


SOFTMAX = _implementation(log=False)
LOG_SOFTMAX = _implementation(log=True)
