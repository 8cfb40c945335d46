"""Softmax and log-softmax, as they are defined. Any floating dtype, differentiable to any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops._checks import accumulator, transforming
from ..ops.softmax import SoftmaxCall, causal_shift


def _exponents(call: SoftmaxCall, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """scale * x + mask with excluded entries at -inf, less the row's maximum; and the row's sum of exponentials, at
    least 0."""
    s = call.x.to(dtype) * call.scale
    if call.causal is not None:
        rows, columns = call.x.shape[-2:]
        keep = torch.ones((rows, columns), dtype=torch.bool, device=call.x.device).tril(causal_shift(call))
        s = s.masked_fill(~keep, -torch.inf)
    if call.mask is not None and call.mask.dtype == torch.bool:
        s = s.masked_fill(~call.mask, -torch.inf)
    elif call.mask is not None:
        s = torch.where(call.mask == -torch.inf, -torch.inf, s + call.mask.to(dtype))
    if s.numel() == 0:
        return s, s.sum(call.dim, keepdim=True)
    top = s.detach().amax(call.dim, keepdim=True)
    s = s - torch.where(top == -torch.inf, torch.zeros_like(top), top)
    return s, torch.exp(s).sum(call.dim, keepdim=True)


def _like_input(y: Tensor, x: Tensor) -> Tensor:
    """In x's dtype and memory order."""
    if transforming():
        return y.to(x.dtype)
    return torch.empty_like(x).copy_(y)


def _squeeze_scalar(call: SoftmaxCall) -> SoftmaxCall:
    return (
        call._replace(x=call.x[None], mask=None if call.mask is None else call.mask[None])
        if call.x.dim() == 0
        else call
    )


def forward(call: SoftmaxCall, compute_dtype: torch.dtype | None = None) -> tuple[Tensor]:
    rows = _squeeze_scalar(call)
    s, total = _exponents(rows, compute_dtype or accumulator(call.x.dtype))
    y = torch.exp(s) / torch.where(total == 0, torch.ones_like(total), total)
    return (_like_input(y.view(call.x.shape), call.x),)


def log_forward(call: SoftmaxCall, compute_dtype: torch.dtype | None = None) -> tuple[Tensor]:
    rows = _squeeze_scalar(call)
    s, total = _exponents(rows, compute_dtype or accumulator(call.x.dtype))
    y = s - torch.log(torch.where(total == 0, torch.ones_like(total), total))
    return (_like_input(y.view(call.x.shape), call.x),)


def _backward(
    call: SoftmaxCall, y: Tensor, dy: Tensor, wanted: Sequence[bool], log: bool
) -> tuple[Tensor | None, Tensor | None]:
    """softmax: ds = y (dy - sum(y dy)); log_softmax: ds = dy - exp(y) sum(dy), over the entries that are not
    excluded: whatever dy holds there, which for a softmax are entries of weight 0, has no part in it."""
    dtype = accumulator(y.dtype)
    out = y.to(dtype)
    excluded = out == (-torch.inf if log else 0.0)
    g = dy.to(dtype).masked_fill(excluded, 0.0)
    if y.dim() == 0:
        ds = g - g
    elif log:
        ds = g - torch.exp(out) * g.sum(call.dim, keepdim=True)
    else:
        ds = out * (g - (out * g).sum(call.dim, keepdim=True))
    ds = ds.masked_fill(excluded, 0.0)
    dmask = None
    if wanted[1] and call.mask is not None:
        dmask = ds.sum_to_size(call.mask.shape).to(call.mask.dtype)
    return (ds * call.scale).to(y.dtype) if wanted[0] else None, dmask


def backward(
    call: SoftmaxCall, outputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    dy = grads[0]
    assert dy is not None
    return _backward(call, outputs[0], dy, wanted, log=False)


def log_backward(
    call: SoftmaxCall, outputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    dy = grads[0]
    assert dy is not None
    return _backward(call, outputs[0], dy, wanted, log=True)
