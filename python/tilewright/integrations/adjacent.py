"""Two weights that a kernel wants as one matrix, read where they are: no memory of the user's is ever exchanged, unless
they ask for it.

Weights lie one behind the other after :func:`pack`, in FSDP's flat parameters, and after ``vector_to_parameters``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

#: References to the memory of a tensor that nothing else reads: its own, and that of the object one asks through.
SOLE_OWNER = 2


def as_one(first: Tensor, second: Tensor) -> Tensor | None:
    """``torch.cat((first, second))`` of two matrices (F, C) and (G, C), differentiable, as a view of their memory; None
    where they do not lie one behind the other. What is computed from it is to be given to :func:`notice_changes`."""
    if not (_is_plain(first) and _is_plain(second) and _are_adjacent(first, second)):
        return None
    if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        found: Tensor = _Rows.apply(first, second)  # type: ignore[no-untyped-call]
        return found
    return _view(first, second)


def notice_changes(result: Tensor, *weights: Tensor) -> None:
    """Raise in the backward of ``result`` when a weight has been changed in place since, as autograd does for what it
    has saved: the view of several weights that it saves keeps the version of the first one alone."""
    if not result.requires_grad:
        return
    before = [t._version for t in weights]

    def check(_: Tensor) -> None:
        for t, version in zip(weights, before, strict=True):
            if t._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"a weight of shape {tuple(t.shape)} is at version {t._version}; expected version {version}"
                )

    result.register_hook(check)


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
        first.dtype == second.dtype
        and first.shape[1:] == second.shape[1:]
        and first.is_contiguous()
        and second.is_contiguous()
        and first.data_ptr() + first.nbytes == second.data_ptr()
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def _view(first: Tensor, second: Tensor) -> Tensor:
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


def why_not_pack(first: Tensor, second: Tensor) -> str | None:
    """Why :func:`pack` would take something from somebody, or could not be done. What cannot be seen from here, a CUDA
    graph that was captured before or an address that somebody has written down, is not looked for."""
    if _are_adjacent(first, second):
        return None
    if first is second:
        return "the two are one parameter"
    if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype or first.device != second.device:
        given = " and ".join(f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in (first, second))
        return f"the two differ in type, width or device ({given})"
    for t in (first, second):
        if type(t) is not Parameter or t.layout != torch.strided or t.device.type == "meta":
            return f"one is a {type(t).__name__} of layout {t.layout} on {t.device}, not a parameter with memory"
        if t.device.type == "cpu" and t.is_shared():
            return "one is in memory that is shared between processes"
        if t.device.type == "cpu" and t.is_pinned():
            return "one is in pinned memory"
        storage = t.untyped_storage()
        if storage.nbytes() != t.nbytes:
            return "one is a part of a larger storage"
        if torch._C._storage_Use_Count(storage._cdata) != SOLE_OWNER:
            return "the memory of one is also held by another tensor, such as its .data, or an array"
    return None


def pack(first: Parameter, second: Parameter) -> None:
    """Move two parameters next to each other in memory. They stay the parameters that they are, with their values."""
    if _are_adjacent(first, second):
        return
    # A tensor made in inference mode could not become a parameter's memory.
    with torch.inference_mode(False), torch.no_grad():
        both = torch.cat((first, second))
        first.data, second.data = both[: len(first)], both[len(first) :]


def unpack(first: Parameter, second: Parameter) -> None:
    """Give each of two packed parameters memory of its own again, unless somebody else reads what they have now."""
    storage = first.untyped_storage()
    alone = torch._C._storage_Use_Count(storage._cdata) == SOLE_OWNER + 1  # the two, where a sole owner is one
    if _are_adjacent(first, second) and alone and not (first.device.type == "cpu" and first.is_shared()):
        with torch.inference_mode(False), torch.no_grad():
            first.data, second.data = first.clone(), second.clone()
