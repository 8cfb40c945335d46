"""Two weights that a kernel wants as one matrix, without a copy per call and without a second copy in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def adjacent_rows(first: Tensor, second: Tensor) -> Tensor:
    """``torch.cat((first, second))`` of two matrices (F, C) and (G, C), differentiable, as a view of their memory.

    The first call moves two parameters, which stay parameters of their own with the same names and values, next to each
    other in memory. What tears them apart again (a move to another device, a cast, a deep copy, loading by assignment)
    only makes the next call move them once more: nothing is cached, so nothing can be stale. Tensors that cannot be
    moved (of another type than Parameter, under torch.compile or functorch) are copied.
    """
    if not (_is_plain(first) and _is_plain(second)) or first.dtype != second.dtype or first.device != second.device:
        return torch.cat((first, second))
    if not _are_adjacent(first, second):
        if type(first) is not Parameter or type(second) is not Parameter:
            return torch.cat((first, second))
        _move_together(first, second)
    if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        joined: Tensor = _Rows.apply(first, second)  # type: ignore[no-untyped-call]
        return joined
    return _view(first, second)


def _is_plain(t: Tensor) -> bool:
    return (
        type(t) in (Tensor, Parameter)
        and t.layout == torch.strided
        and t.device.type != "meta"
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _are_adjacent(first: Tensor, second: Tensor) -> bool:
    return (
        first.is_contiguous()
        and second.is_contiguous()
        and first.data_ptr() + first.nbytes == second.data_ptr()
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def _move_together(first: Parameter, second: Parameter) -> None:
    # A tensor made in inference mode could not become a parameter's memory.
    with torch.inference_mode(False), torch.no_grad():
        both = torch.empty((len(first) + len(second), first.shape[1]), dtype=first.dtype, device=first.device)
        both[: len(first)] = first
        both[len(first) :] = second
        first.data, second.data = both[: len(first)], both[len(first) :]


def _view(first: Tensor, second: Tensor) -> Tensor:
    # A view of ``first``, so that autograd notices when it is changed in place between forward and backward.
    columns = first.shape[1]
    return first.detach().as_strided((len(first) + len(second), columns), (columns, 1))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.rows = len(first)
        return _view(first, second)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        halves = (grad[: ctx.rows], grad[ctx.rows :])
        return tuple(half if want else None for half, want in zip(halves, ctx.needs_input_grad, strict=True))
