"""``torch.nn.MultiheadAttention`` on our kernels: its parameters, its arguments, its results."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import selection
from ..ops._checks import autocasting, check_like, check_probability, shape
from ..ops._features import MAX_HEAD_DIM
from ..ops.attention import attention
from ..ops.softmax import softmax
from ._masks import check_mask_type, merge_masks


def check_served(head_dim: int, dropout: Any, prefix: str = "") -> None:
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"{prefix}embed_dim / num_heads = {head_dim}; accepted are head dims up to {MAX_HEAD_DIM}")
    check_probability(f"{prefix}dropout", dropout)


def _no_change(module: nn.Module, arguments: Any) -> None:
    """The pre-hook of :func:`keep_from_being_bypassed`."""


def keep_from_being_bypassed(module: nn.MultiheadAttention) -> RemovableHandle:
    """In evaluation mode ``nn.TransformerEncoderLayer`` hands the weights of its ``self_attn`` to a kernel of torch's
    own and never calls the module, unless there is a hook on it. This hook does nothing else."""
    return module.register_forward_pre_hook(_no_change)


class MultiheadAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention``, computed by :func:`tilewright.attention`.

    Constructor, parameters (names, shapes and initial random numbers), state dict and the arguments of ``forward`` are
    torch's, by inheritance. With ``need_weights=False`` no L x S matrix is made. With ``need_weights=True`` (torch's
    default) that matrix is the result that is asked for, so it is made: scores, :func:`tilewright.softmax`, dropout.

    Source: Vaswani et al., "Attention Is All You Need" (2017).

    What differs from torch: a query that may attend to nothing gives 0 and weights of 0 where torch gives NaN; errors
    are ValueError and TypeError; nested tensors are refused, so build an ``nn.TransformerEncoder`` around this module
    with ``enable_nested_tensor=False``; torch's inference kernel for whole encoder layers is not used.

    Args:
        embed_dim: E, features of queries and of the result; a multiple of num_heads.
        num_heads: H; E / H is at most 256.
        dropout: probability of dropping each attention weight, in training mode.
        bias: whether projections have one.
        add_bias_kv: append a learned key and value to the sequence.
        add_zero_attn: append a key and value of zeros.
        kdim, vdim: features of keys and values; E when None.
        batch_first: tensors are (N, L, E) instead of (L, N, E).
        device, dtype: of the parameters.

    Raises:
        ValueError: a size or the dropout is wrong; torch's AssertionError where num_heads does not divide embed_dim.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
        )
        check_served(self.head_dim, dropout)
        keep_from_being_bypassed(self)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Project, attend and project back.

        Args:
            query: (L, N, E), (N, L, E) with batch_first, or (L, E) for one sequence without a batch.
            key: (S, N, kdim), (N, S, kdim) or (S, kdim); value: the same with vdim.
            key_padding_mask: (N, S), or (S,) without a batch; bool (True is IGNORED, the opposite of this package's
                ops) or float (added to the scores).
            need_weights: also return the attention weights.
            attn_mask: (L, S) or (N * H, L, S); bool (True is IGNORED) or float (added; gets a gradient). A float mask
                is float32 or has query's dtype; under autocast any but float64.
            average_attn_weights: the mean of the heads' weights instead of each head's.
            is_causal: a promise that attn_mask is the causal mask, which must be given too. As in torch the mask is
                then not read, unless weights are wanted or there is a key_padding_mask.

        Returns:
            output, in query's shape, and the weights: (N, L, S), or (N, H, L, S) without averaging, with no N where
            query has none; None without need_weights. S counts what add_bias_kv and add_zero_attn append. In training
            the weights are those after dropout, as in torch.

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it.
        """
        batch, length, keys = self._check(query, key, value)
        key_padding_mask = check_mask_type("key_padding_mask", key_padding_mask, query)
        attn_mask = check_mask_type("attn_mask", attn_mask, query)
        if is_causal and attn_mask is None:
            raise ValueError(
                "is_causal=True was given without attn_mask; it only says that attn_mask is the causal mask "
                "(nn.Transformer.generate_square_subsequent_mask makes one)"
            )
        batched = query.dim() == 3
        q, k, v = (self._split_heads(t, batched) for t in self._project(query, key, value))
        k, v = self._append(k, self.bias_k), self._append(v, self.bias_v)
        appended = k.shape[1] - keys
        # An appended key is visible to every query, which a causal bound on the longer sequence would not say.
        by_bound = is_causal and key_padding_mask is None and not need_weights and appended == 0
        mask = merge_masks(
            None if by_bound else attn_mask, key_padding_mask, batched, (batch, self.num_heads, length, keys), appended
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            out, weights = self._attend_with_weights(q, k, v, mask, dropout)
            if average_attn_weights:
                weights = weights.mean(1)
            weights = weights if batched else weights.squeeze(0)
        else:
            causal = "top_left" if by_bound else None
            out = cast(Tensor, attention(q, k, v, mask=mask, causal=causal, dropout_p=dropout, layout="bshd"))
        out = out.flatten(2)
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return F.linear(out, self.out_proj.weight, self.out_proj.bias), weights

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int]:
        """N (1 without a batch), L and S."""
        features = {"query": (query, self.embed_dim), "key": (key, self.kdim), "value": (value, self.vdim)}
        for name, (t, _) in features.items():
            if not isinstance(t, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
            if t.is_nested:
                raise TypeError(
                    f"{name} is a nested tensor; pass a padded one with key_padding_mask (and build an "
                    "nn.TransformerEncoder with enable_nested_tensor=False)"
                )
        sequence_axis = 1 if self.batch_first and query.dim() == 3 else 0
        for name, (t, size) in features.items():
            if not autocasting(t) or torch.float64 in (t.dtype, self.out_proj.weight.dtype):  # which it leaves alone
                check_like(name, t, "the module's weight", self.out_proj.weight)
            if t.dim() not in (2, 3) or t.dim() != query.dim():
                raise ValueError(
                    f"{name} has shape {shape(t)}; query, key and value all have 3 dimensions, or 2 without a batch"
                )
            if t.shape[-1] != size:
                raise ValueError(f"{name} of shape {shape(t)} has {t.shape[-1]} features; the module expects {size}")
            if t.dim() == 3 and t.shape[1 - sequence_axis] != query.shape[1 - sequence_axis]:
                raise ValueError(
                    f"{name} of shape {shape(t)} has batch size {t.shape[1 - sequence_axis]} but query has "
                    f"{query.shape[1 - sequence_axis]} (batch_first={self.batch_first})"
                )
        if value.shape[sequence_axis] != key.shape[sequence_axis]:
            raise ValueError(
                f"value has {value.shape[sequence_axis]} positions but key has {key.shape[sequence_axis]}; they must "
                f"be the same ({shape(value)}, {shape(key)})"
            )
        batch = query.shape[1 - sequence_axis] if query.dim() == 3 else 1
        return batch, query.shape[sequence_axis], key.shape[sequence_axis]

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """q, k, v (..., E) in as few matrix products as the identity of the inputs allows."""
        width = self.embed_dim
        # torch takes a bias of another type than the weights too.
        bias = None if self.in_proj_bias is None else self.in_proj_bias.to(self.out_proj.weight.dtype)
        if not self._qkv_same_embed_dim:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            return tuple(map(F.linear, (query, key, value), weights, biases))
        if query is key and key is value:
            fused = F.linear(query, self.in_proj_weight, bias).unflatten(-1, (3, width))
            return cast(tuple[Tensor, ...], fused.unbind(-2))
        sizes = [width, 2 * width] if key is value else [width] * 3
        split = (None,) * len(sizes) if bias is None else bias.split(sizes)
        inputs = (query, key) if key is value else (query, key, value)
        projected = tuple(map(F.linear, inputs, self.in_proj_weight.split(sizes), split))
        return projected if len(projected) == 3 else (projected[0], *projected[1].chunk(2, -1))

    def _split_heads(self, t: Tensor, batched: bool) -> Tensor:
        """(N, S, E), (S, N, E) or (S, E) -> (N, S, H, E / H), a view."""
        t = t.unflatten(-1, (self.num_heads, self.head_dim))
        if not batched:
            return t.unsqueeze(0)
        return t if self.batch_first else t.transpose(0, 1)

    def _append(self, t: Tensor, bias: Tensor | None) -> Tensor:
        """(N, S, H, D) with the learned position and the one of zeros behind it, where the module has them."""
        parts = [t]
        if bias is not None:
            parts.append(bias.to(t.dtype).view(1, 1, *t.shape[2:]).expand(t.shape[0], 1, -1, -1))
        if self.add_zero_attn:
            parts.append(t.new_zeros(t.shape[0], 1, *t.shape[2:]))
        return torch.cat(parts, 1) if len(parts) > 1 else t

    def _attend_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """out (N, L, H, D) and weights (N, H, L, S). The scale goes into q, where half types cannot overflow."""
        q, k, v = (t.transpose(1, 2) for t in (q * (1.0 / math.sqrt(self.head_dim)), k, v))
        if mask is None:
            weights = F.dropout(softmax(q @ k.mT), dropout)
            return (weights @ v).transpose(1, 2), weights
        if mask.is_floating_point() and autocasting(q):
            mask = mask.to(torch.promote_types(mask.dtype, torch.float32))  # softmax computes in float32 there
        keep = (mask if mask.dtype == torch.bool else mask != -torch.inf).expand(*q.shape[:-1], k.shape[-2])
        weights = F.dropout(softmax(selection.scores(q, k, keep), mask=mask), dropout)
        return selection.weighted(weights.to(v.dtype), v, keep).transpose(1, 2), weights
