"""ffn: a transformer's feed-forward block, linear + activation (or gate) + linear, with its residual and dropout."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from ._checks import autocast, check_float_tensor, check_like, check_probability, shape
from ._dropout import draw_rng
from ._features import tensor_bytes
from ._op import Cost, Op

#: In the order of csrc/common/params.h.
ACTIVATIONS = ("relu", "relu2", "gelu", "gelu_tanh", "silu", "reglu", "geglu", "geglu_tanh", "swiglu")
GATED = ("reglu", "geglu", "geglu_tanh", "swiglu")


class FfnCall(NamedTuple):
    """x (M, C), w_in (F, C) or (2F, C) when gated, w_out (E, F), b_in, b_out, residual (M, E), rng (2,) int64."""

    x: Tensor
    w_in: Tensor
    w_out: Tensor
    b_in: Tensor | None
    b_out: Tensor | None
    residual: Tensor | None
    rng: Tensor | None
    activation: str
    dropout_p: float
    save_pre: bool


def allocate(call: FfnCall) -> tuple[Tensor, Tensor]:
    """out (M, E) and pre (M, F or 2F), the input of the activation, empty unless it is to be kept for the backward."""
    rows = call.x.shape[0]
    out = call.x.new_empty((rows, call.w_out.shape[0]))
    return out, call.x.new_empty((rows, call.w_in.shape[0]) if call.save_pre else (0, 0))


def cost(call: FfnCall) -> Cost:
    rows, features = call.x.shape
    flops = 2 * rows * (features * call.w_in.shape[0] + call.w_out.shape[1] * call.w_out.shape[0])
    out = rows * call.w_out.shape[0] * call.x.element_size()
    kept = rows * call.w_in.shape[0] * call.x.element_size() if call.save_pre else 0
    return Cost(flops, tensor_bytes(call.x, call.w_in, call.w_out, call.b_in, call.b_out, call.residual) + out + kept)


def _without_grad(call: FfnCall) -> FfnCall:
    return call._replace(save_pre=False) if call.save_pre else call


def _check_bias(name: str, bias: Any, size: int, x: Tensor) -> None:
    if bias is not None:
        check_like(name, bias, "x", x)
        if tuple(bias.shape) != (size,):
            raise ValueError(f"{name} has shape {shape(bias)}; it must be ({size},)")


def _rows(x: Tensor) -> Tensor:
    """(M, C). A matrix is left alone: a view costs a node in autograd's graph."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def prepare(
    x: Any,
    w_in: Any,
    w_out: Any,
    *,
    b_in: Any,
    b_out: Any,
    activation: Any,
    residual: Any,
    dropout_p: Any,
    recompute: Any,
) -> FfnCall:
    """Check the arguments of :func:`ffn` and bring them into canonical form."""
    x, w_in, w_out, b_in, b_out, residual = autocast(x, w_in, w_out, b_in, b_out, residual)
    check_float_tensor("x", x)
    if x.dim() < 1:
        raise ValueError("x has no dimensions; it must be (..., C)")
    for name, w in (("w_in", w_in), ("w_out", w_out)):
        check_like(name, w, "x", x)
        if w.dim() != 2:
            raise ValueError(f"{name} has shape {shape(w)}; it must have 2 dimensions, (out features, in features)")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} must be one of {', '.join(map(repr, ACTIVATIONS))}")
    features, hidden = x.shape[-1], w_out.shape[1]
    inner = 2 * hidden if activation in GATED else hidden
    if w_in.shape[1] != features:
        raise ValueError(
            f"w_in has shape {shape(w_in)} but x has {features} features; it must be (F or 2F, {features})"
        )
    if w_in.shape[0] != inner:
        rows = f"2F = {inner} rows, gate and up" if activation in GATED else f"F = {inner} rows"
        raise ValueError(
            f"w_in has shape {shape(w_in)} and w_out {shape(w_out)}, (E, F); with activation={activation!r} "
            f"w_in must have {rows}"
        )
    _check_bias("b_in", b_in, inner, x)
    _check_bias("b_out", b_out, w_out.shape[0], x)
    if residual is not None:
        out_shape = (*x.shape[:-1], w_out.shape[0])
        check_like("residual", residual, "x", x)
        if tuple(residual.shape) != out_shape:
            raise ValueError(f"residual has shape {shape(residual)}; it must have the output's, {out_shape}")
        residual = _rows(residual)
    dropout_p = check_probability("dropout_p", dropout_p)
    return FfnCall(
        _rows(x),
        w_in,
        w_out,
        None if b_in is None else b_in.contiguous(),
        None if b_out is None else b_out.contiguous(),
        residual,
        draw_rng(dropout_p, x.device),
        activation,
        dropout_p,
        not recompute,
    )


OP = Op(
    name="ffn",
    call=FfnCall,
    outputs=("out", "pre"),
    allocate=allocate,
    cost=cost,
    prepare=prepare,
    differentiable=("x", "w_in", "w_out", "b_in", "b_out"),
    saved=("x", "w_in", "w_out", "b_in", "b_out", "rng"),
    intermediates=("pre",),
    passes_through=("residual",),
    rows=("b_in", "b_out", "rng"),
    without_grad=_without_grad,
)


def ffn(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    *,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    activation: str = "gelu_tanh",
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    recompute: bool = False,
    backend: str | None = None,
) -> Tensor:
    """A feed-forward block: ``residual + dropout(act(x @ w_in.T + b_in) @ w_out.T + b_out)``.

    GELU and its tanh form: Hendrycks and Gimpel (2016); SiLU: Elfwing et al. (2017); squared ReLU: So et al., "Primer"
    (2021); gated units: Shazeer, "GLU variants improve Transformer" (2020).

    Args:
        x: (..., C); float32, float16, bfloat16 or float64.
        w_in: (F, C), as F.linear takes it; for gated activations (2F, C): the gate's rows, then the up projection's.
        Any
            strides: a checkpoint's transposed weight goes in as ``w.t()``.
        w_out: (E, F); E is usually C.
        b_in: (F,) or (2F,); b_out: (E,).
        activation: "relu", "relu2" (relu squared), "gelu" (exact), "gelu_tanh", "silu"; or gated, act(gate) * up:
        "reglu",
            "geglu", "geglu_tanh", "swiglu".
        residual: (..., E), added to the output.
        dropout_p: probability of dropping each element before the residual is added; the mask comes from torch's
        generator.
        recompute: keep only x for the backward, and compute the activation's input again there: less memory, one more
            matrix product.
        backend: "cuda", "triton", "cpu" or "reference"; never falls back. None: use_backend's choice, or automatic.

    Returns:
        (..., E), x's dtype. Accumulated in float32 (float64 for float64) and rounded once per matrix product.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        BackendError: the requested backend cannot serve the call.
    """
    call = prepare(
        x,
        w_in,
        w_out,
        b_in=b_in,
        b_out=b_out,
        activation=activation,
        residual=residual,
        dropout_p=dropout_p,
        recompute=recompute,
    )
    out = OP(call, backend)[0]
    return out if x.dim() == 2 else out.view(*x.shape[:-1], w_out.shape[0])
