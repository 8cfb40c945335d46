"""The feed-forward block of a transformer layer, as a module over one fused op."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops._checks import autocasting, check_probability
from ..ops.ffn import ACTIVATIONS, GATED, ffn
from ._plain import check_plain


class FeedForward(nn.Module):
    """``residual + dropout(act(x @ W1.T + b1) @ W2.T + b2)``, or with a gated activation ``act(gate) * up`` in between.

    The parameters are ``linear1.weight``, ``linear1.bias``, ``linear2.weight`` and ``linear2.bias``, named, shaped and
    initialised as those of ``torch.nn.TransformerEncoderLayer``. Gated, linear1 has 2 * d_ff rows: the gate's, then the
    up projection's. The two hold the weights only; what is computed is :func:`tilewright.ffn`. They are not called, so
    hooks on them raise ValueError, pruning's too; a parametrization is served.

    Args:
        d_model: features of x and of the result.
        d_ff: features in between; 4 * d_model when None.
        activation: "relu", "relu2", "gelu" (exact), "gelu_tanh", "silu", or gated "reglu", "geglu", "geglu_tanh",
            "swiglu".
        bias: whether both projections have one.
        dropout: probability of dropping each element of the result, before the residual is added; training only.
        recompute: keep only x for the backward: less memory, one more matrix product.
        device, dtype: of the parameters, as in torch.nn.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int | None = None,
        *,
        activation: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d_ff = 4 * d_model if d_ff is None else d_ff
        for name, size in (("d_model", d_model), ("d_ff", d_ff)):
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} must be an int, got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} must be one of {', '.join(map(repr, ACTIVATIONS))}")
        self.d_model, self.d_ff, self.activation, self.recompute = d_model, d_ff, activation, recompute
        self.dropout = check_probability("dropout", dropout)
        inner = 2 * d_ff if activation in GATED else d_ff
        self.linear1 = nn.Linear(d_model, inner, bias=bias, device=device, dtype=dtype)
        self.linear2 = nn.Linear(d_ff, d_model, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Fresh random weights, as the constructor draws them."""
        self.linear1.reset_parameters()
        self.linear2.reset_parameters()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, and residual where it is given, (..., d_model) -> (..., d_model), in x's dtype or autocast's."""
        check_plain(self, "linear1", "linear2")
        # Under autocast the op computes in a half type, but a residual stream is a sum over all layers and stays in its
        # own, as torch's layers keep it: there it is added outside.
        fused = residual is None or not autocasting(x)
        out = ffn(
            x,
            self.linear1.weight,
            self.linear2.weight,
            b_in=self.linear1.bias,
            b_out=self.linear2.bias,
            activation=self.activation,
            residual=residual if fused else None,
            dropout_p=self.dropout if self.training else 0.0,
            recompute=self.recompute,
        )
        return out if fused or residual is None else residual + out

    def extra_repr(self) -> str:
        text = f"activation={self.activation!r}, dropout={self.dropout}"
        return text + (", recompute=True" if self.recompute else "")
