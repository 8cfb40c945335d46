"""The layers that transformer models here are made of, each a thin module over one fused op.

Parameter names and orientations are those of GPT-2 checkpoints: a linear layer is a :class:`Conv1D`, whose weight is
stored (in, out). The ops take any strides, so a transposed view is all they need.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tilewright as tw

from ..nn._plain import check_plain
from ..ops._checks import autocasting
from .cache import LayerCache


class Conv1D(nn.Module):
    """y = x @ weight + bias, weight (in, out): what GPT-2's checkpoints call a convolution of width 1."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    @property
    def linear_weight(self) -> Tensor:
        """The weight as ``F.linear`` takes it, (out, in): a view."""
        return self.weight.t()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return F.linear(x, self.linear_weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[0]}, out_features={self.weight.shape[1]}"


class SelfAttention(nn.Module):
    """Multi-head self-attention over one fused projection to q, k and v.

    causal: None, "top_left" or "bottom_right", as :func:`tilewright.attention` takes it.
    scale: what scores are multiplied by; attn_pdrop: dropout of the attention weights, inside the op;
    resid_pdrop: dropout of the output.

    Source: Vaswani et al., "Attention Is All You Need", 2017.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: str | None,
        scale: float,
        attn_pdrop: float = 0.0,
        resid_pdrop: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.scale = heads, causal, scale
        self.attn_pdrop, self.resid_pdrop = attn_pdrop, resid_pdrop
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B, S, C) -> (B, S, C). With a cache, x continues the cached sequences and joins them."""
        batch, length, width = x.shape
        # q, k, v (B, S, H, D): views into the fused projection, which the op reads in place.
        q, k, v = self.c_attn(x).view(batch, length, 3, self.heads, width // self.heads).unbind(2)
        if cache is None:
            dropout = self.attn_pdrop if self.training else 0.0
            attended = tw.attention(q, k, v, causal=self.causal, scale=self.scale, dropout_p=dropout, layout="bshd")
        else:
            attended = tw.kvcache_attention(
                q,
                cache.k,
                cache.v,
                k=k,
                v=v,
                cache_seqlens=cache.seqlens,
                causal=self.causal,
                scale=self.scale,
                layout="bshd",
            )
        out = cast(Tensor, attended)  # a pair only with return_lse
        return F.dropout(self.c_proj(out.reshape(batch, length, width)), self.resid_pdrop, self.training)


class FeedForward(nn.Module):
    """residual + dropout(act(x @ W1 + b1) @ W2 + b2), in one op."""

    def __init__(self, width: int, inner: int, *, activation: str, resid_pdrop: float = 0.0) -> None:
        super().__init__()
        self.activation, self.resid_pdrop = activation, resid_pdrop
        self.c_fc = Conv1D(width, inner)
        self.c_proj = Conv1D(inner, width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x, residual (B, S, C) -> (B, S, C)."""
        check_plain(self, "c_fc", "c_proj")
        # Under autocast the op computes in a half type. The residual stream is a sum over all layers and stays in
        # float32 (as torch's own layers keep it), so there it is added outside.
        fused = not autocasting(x)
        out = tw.ffn(
            x,
            self.c_fc.linear_weight,
            self.c_proj.linear_weight,
            b_in=self.c_fc.bias,
            b_out=self.c_proj.bias,
            activation=self.activation,
            residual=residual if fused else None,
            dropout_p=self.resid_pdrop if self.training else 0.0,
        )
        return out if fused else residual + out
