"""softmax and log_softmax along one dimension, with scale, mask and causal bound fused."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import autocasting, check_causal, check_factor, check_float_tensor, check_int, check_mask, shape
from ._features import tensor_bytes
from ._op import Cost, Op, contiguous_gradient

MAX_DIMS = 8


class SoftmaxCall(NamedTuple):
    """x of any shape; dim non-negative; mask with as many dimensions as x, each 1 or x's."""

    x: Tensor
    mask: Tensor | None
    dim: int
    scale: float
    causal: str | None


def allocate(call: SoftmaxCall) -> tuple[Tensor]:
    return (torch.empty_like(call.x),)


def gradient_like(call: SoftmaxCall, name: str) -> Tensor:
    """Of x in its memory order, as y is."""
    return torch.empty_like(call.x) if name == "x" else contiguous_gradient(call, name)


def cost(call: SoftmaxCall) -> Cost:
    # Scale, subtract, exponentiate, sum, divide: five operations an element.
    return Cost(5 * call.x.numel(), 2 * tensor_bytes(call.x) + tensor_bytes(call.mask))


def causal_shift(call: SoftmaxCall) -> int:
    """Column j of row i is kept when j <= i + shift."""
    return 0 if call.causal == "top_left" else call.x.shape[-1] - call.x.shape[-2]


def prepare(x: Any, dim: Any, *, scale: Any, mask: Any, causal: Any) -> SoftmaxCall:
    """Check the arguments of :func:`softmax` and bring them into canonical form."""
    check_float_tensor("x", x)
    if x.dim() > MAX_DIMS:
        raise ValueError(f"x has {x.dim()} dimensions; accepted are up to {MAX_DIMS}")
    dim = check_int("dim", dim)
    rank = max(x.dim(), 1)
    if not -rank <= dim < rank:
        raise ValueError(f"dim={dim} is out of range for x of shape {shape(x)}; accepted are {-rank} to {rank - 1}")
    dim = dim % rank
    if x.dtype in (torch.float16, torch.bfloat16) and autocasting(x):
        x = x.float()  # softmax is on autocast's float32 list
    scale = check_factor("scale", scale)
    if mask is not None:
        mask = check_mask("mask", mask, tuple(x.shape), "x", x)
    if causal is not None:
        check_causal(causal)
        if x.dim() < 2 or dim != x.dim() - 1:
            raise ValueError(
                f"causal={causal!r} needs x of two or more dimensions and dim=-1, got shape {shape(x)} and dim={dim}"
            )
    return SoftmaxCall(x, mask, dim, scale, causal)


def _op(name: str) -> Op:
    return Op(
        name=name,
        call=SoftmaxCall,
        outputs=("y",),
        allocate=allocate,
        cost=cost,
        prepare=prepare,
        differentiable=("x", "mask"),
        gradient_like=gradient_like,
        saved=("mask",),  # x is not needed again: keeping y alone halves the memory of a training step
    )


OP = _op("softmax")
LOG_OP = _op("log_softmax")

_DOC = """{title} of ``scale * x + mask`` along ``dim``, in one pass over memory.

    The running maximum and sum are those of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
    {empty}

    Args:
        x: any shape of up to 8 dimensions and any strides; float32, float16, bfloat16 or float64.
        dim: the dimension that is normalised.
        scale: factor on x.
        mask: bool (True keeps) or float (added; gets a gradient; -inf excludes), broadcastable to x's shape. A float
        mask
            is float32 or has x's dtype.
        causal: None, "top_left" (column j of row i is kept when j <= i) or "bottom_right" (j <= i + columns - rows),
        over the
            last two dimensions; needs dim=-1.
        backend: "cuda", "triton", "cpu" or "reference"; never falls back. None: use_backend's choice, or automatic.

    Returns:
        A tensor of x's shape, dtype and memory order. Arithmetic is in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        BackendError: the requested backend cannot serve the call.
    """


def softmax(
    x: Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
    causal: str | None = None,
    backend: str | None = None,
) -> Tensor:
    return OP(prepare(x, dim, scale=scale, mask=mask, causal=causal), backend)[0]


def log_softmax(
    x: Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
    causal: str | None = None,
    backend: str | None = None,
) -> Tensor:
    return LOG_OP(prepare(x, dim, scale=scale, mask=mask, causal=causal), backend)[0]


softmax.__doc__ = _DOC.format(
    title="Softmax", empty="A row that the mask excludes entirely gives 0, with zero gradients; never NaN."
)
log_softmax.__doc__ = _DOC.format(
    title="Log-softmax",
    empty="Excluded entries are -inf with zero gradients, also when the mask excludes a whole row; never NaN.",
)
