"""``scaled_dot_product_attention`` with torch's exact signature and semantics, on our kernels."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from ..ops import attention
from ..ops._checks import (
    autocast,
    check_dense,
    check_factor,
    check_float_tensor,
    check_like,
    shape,
    wide_under_autocast,
)
from ..ops._features import MAX_HEAD_DIM


def _merge_batch(t: Tensor, batch: tuple[int, ...], rank: int) -> Tensor:
    """(..., S, D) -> (B, H, S, D): leading dimensions are broadcast to ``batch``, the last of them taken as heads."""
    if t.shape[:-2] != batch:
        t = t.expand(*batch, *t.shape[-2:])
    if rank == 4:
        return t
    if rank < 4:
        return t.reshape((1,) * (4 - rank) + tuple(t.shape))
    return t.reshape(math.prod(batch[:-1]), *t.shape[-3:])  # not -1, which no size answers where another is 0


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``, argument for argument.

    Args:
        query: (..., H, L, E), key: (..., H or Hkv, S, E), value: (..., H or Hkv, S, Ev); 2 or more dimensions; leading
            dimensions broadcast against each other.
        attn_mask: bool (True attends) or float (added, gets a gradient), broadcastable to (..., H, L, S). Not together
            with is_causal. A torch.nn.attention.bias.CausalBias selects its alignment.
        dropout_p: as given, whether or not a model is training.
        is_causal: top-left alignment: query i sees keys j <= i.
        scale: 1 / sqrt(E) when None.
        enable_gqa: allow key and value to have fewer heads, H a multiple of Hkv.

    Returns:
        (..., H, L, Ev), in query's memory order. A query that the mask excludes entirely gives 0, as in torch; where
        there is no query, or value has no elements, nothing is broadcast: zeros in query's leading dimensions.

    Raises:
        TypeError, ValueError: where torch raises RuntimeError, in words that name the argument.
    """
    call, out_shape = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return run(call, out_shape, backend=None)


def run(call: attention.AttentionCall, out_shape: tuple[int, ...] | None, backend: str | None) -> Tensor:
    """What :func:`prepare` prepared, on the backend asked for."""
    out = attention.OP(call, backend)[0]
    return out if out_shape is None else out.reshape(out_shape)


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[attention.AttentionCall, tuple[int, ...] | None]:
    """The arguments, checked, as a call of attention, and the shape of SDPA's result where attention's is another."""
    query, key, value = autocast(query, key, value)  # type: ignore[assignment]  # None stays None, and is refused
    for name, t in (("query", query), ("key", key), ("value", value)):
        check_float_tensor(name, t)
        if t.dim() < 2:
            raise ValueError(f"{name} has shape {shape(t)}; it must have 2 or more dimensions, (..., S, E)")
    check_like("key", key, "query", query)
    check_like("value", value, "query", query)
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal must be a bool, got {type(is_causal).__name__}")
    causal = "top_left" if is_causal else None
    if attn_mask is not None and is_causal:
        raise ValueError(
            "attn_mask and is_causal=True were both given; put the causal bound into the mask, or drop one"
        )
    if is_causal_bias(type(attn_mask)):
        attn_mask, causal = None, _alignment(attn_mask, query, key)
    if scale is not None:
        scale = check_factor("scale", scale)
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key has last dimension {key.shape[-1]} but query has {query.shape[-1]}; they must be the same"
        )
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"value has {value.shape[-2]} positions but key has {key.shape[-2]}; they must be the same")
    for name, t in (("query", query), ("value", value)):
        if not 1 <= t.shape[-1] <= MAX_HEAD_DIM:
            raise ValueError(f"{name} has head dim {t.shape[-1]}; accepted are 1 to {MAX_HEAD_DIM}")
    batch, rank = _batch_shape(query, key, value, enable_gqa)
    mask = _merge_mask(attn_mask, batch, rank, query, key)
    if query.shape[-2] == 0 or 0 in value.shape:
        # What torch makes of this: zeros for query's rows, without broadcasting, and gradients of zeros but the mask's.
        batch, rank, mask = tuple(query.shape[:-2]), query.dim(), None
        q, k, v = (_merge_batch(t, batch, rank) for t in (query, _no_positions(key), _no_positions(value)))
    else:
        heads_kv = (*batch[:-1], key.shape[-3]) if enable_gqa else batch
        q = _merge_batch(query, batch, rank)
        k, v = _merge_batch(key, heads_kv, rank), _merge_batch(value, heads_kv, rank)
    call = attention.prepare(
        q,
        k,
        v,
        mask=mask,
        causal=causal,
        window=None,
        softcap=0.0,
        alibi_slopes=None,
        sinks=None,
        dropout_p=dropout_p,
        scale=scale,
        layout="bhsd",
        deterministic=False,
    )
    return call, None if rank == 4 else (*batch, query.shape[-2], value.shape[-1])


def _no_positions(t: Tensor) -> Tensor:
    """(0, E) of a (..., S, E), in whose graph it is."""
    return t.reshape(-1)[:0].reshape(0, t.shape[-1])


def is_causal_bias(kind: type) -> bool:
    """Whether this is torch.nn.attention.bias.CausalBias: a mask that holds an alignment and no numbers."""
    # There is one only where that module has been imported, which takes torch two seconds.
    module = None if kind in (Tensor, type(None)) else sys.modules.get("torch.nn.attention.bias")
    return module is not None and issubclass(kind, module.CausalBias)


def _alignment(bias: Any, query: Tensor, key: Tensor) -> str:
    lengths = (query.shape[-2], key.shape[-2])
    if (bias.seq_len_q, bias.seq_len_kv) != lengths:
        raise ValueError(
            f"attn_mask is a CausalBias of {bias.seq_len_q} by {bias.seq_len_kv} positions; it must be {lengths}"
        )
    return "top_left" if bias.variant.name == "UPPER_LEFT" else "bottom_right"


def _batch_shape(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[tuple[int, ...], int]:
    """The leading dimensions of the output, and the rank of the whole."""
    rank = max(query.dim(), key.dim(), value.dim())
    leads: list[tuple[int, ...]] = [tuple(t.shape[:-2]) for t in (query, key, value)]
    if enable_gqa:
        if any(len(lead) < 1 for lead in leads):
            raise ValueError("enable_gqa=True needs a head dimension: query, key and value of 3 or more dimensions")
        heads, heads_k, heads_v = (lead[-1] for lead in leads)
        if heads_k != heads_v or (heads_k != 0 and heads % heads_k != 0):
            raise ValueError(
                f"query has {heads} heads, which must be a multiple of those of key ({heads_k}) and value ({heads_v})"
            )
        leads = [leads[0], (*leads[1][:-1], 1), (*leads[2][:-1], 1)]
    if leads[0] == leads[1] == leads[2]:  # the usual case
        return leads[0], rank
    try:
        return tuple(torch.broadcast_shapes(*leads)), rank
    except RuntimeError:
        hint = "" if enable_gqa else "; for fewer key and value heads pass enable_gqa=True"
        raise ValueError(
            f"key and value of shapes {shape(key)}, {shape(value)} do not broadcast with query's {shape(query)}{hint}"
        ) from None


def _merge_mask(given: Any, batch: tuple[int, ...], rank: int, query: Tensor, key: Tensor) -> Tensor | None:
    if given is None:
        return None
    target = (*batch, query.shape[-2], key.shape[-2])
    if not isinstance(given, Tensor):
        raise TypeError(f"attn_mask must be a torch.Tensor, got {type(given).__name__}")
    check_dense("attn_mask", given)
    mask = wide_under_autocast(given)
    if mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise TypeError(
            f"attn_mask has dtype {given.dtype}; accepted are bool, float32 and query's dtype {query.dtype}"
        )
    try:
        fits = torch.broadcast_shapes(mask.shape, target) == torch.Size(target)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"attn_mask of shape {shape(mask)} does not broadcast to {target}")
    if rank <= 4:
        return mask
    while mask.dim() < rank:
        mask = mask.unsqueeze(0)
    if math.prod(mask.shape[:-3]) > 1:
        mask = mask.expand(*batch[:-1], *mask.shape[-3:])
    return mask.reshape(math.prod(mask.shape[:-3]), *mask.shape[-3:])
