"""What attention, varlen_attention and kvcache_attention have in common: their options, checked once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import (
    check_causal,
    check_device,
    check_factor,
    check_float_tensor,
    check_int,
    check_like,
    check_mask,
    shape,
    wide_under_autocast,
)

MAX_HEAD_DIM = 256

#: Options that every attention op takes, in the words of all three docstrings.
OPTIONS_DOC = """
        mask: bool (True attends) or float (added to the scores; gets a gradient; -inf excludes, +inf and NaN make the
            query's row NaN), broadcastable to {mask_shape}. A float mask is float32 or has q's dtype.
        causal: None, "top_left" (query i sees keys j <= i, what SDPA means) or "bottom_right" (j <= i + Sk - Sq, what
            FlashAttention means).
        window: (left, right), each an int >= 0 or None for no limit: query i sees keys within
            [i + shift - left, i + shift + right], where shift is 0 for causal "top_left" and Sk - Sq otherwise.
        softcap: if > 0, scores become softcap * tanh(scores / softcap), before mask and ALiBi are added.
        alibi_slopes: (H,) or (B, H), float; adds -slope * |i + shift - j|. No gradient.
        sinks: (H,), one logit per head that joins the softmax denominator only. q's dtype or float32; gets a gradient.
        scale: factor on q @ k^T; 1 / sqrt(D) when None.
        backend: "cuda", "triton", "cpu" or "reference"; never falls back. None: use_backend's choice, or automatic.
"""


class Features(NamedTuple):
    """The checked options, in the order in which every attention call lists them."""

    mask: Tensor | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    causal: str | None
    window_left: int
    window_right: int
    softcap: float
    scale: float


def check_qkv(q: Any, k: Any, v: Any, names: tuple[str, str, str], rank: int, dims: str) -> None:
    check_float_tensor(names[0], q)
    if q.dim() != rank:
        raise ValueError(f"{names[0]} has shape {shape(q)}; it must have {rank} dimensions, {dims}")
    for name, t in ((names[1], k), (names[2], v)):
        check_like(name, t, names[0], q)
        if t.dim() != rank:
            raise ValueError(f"{name} has shape {shape(t)}; it must have {rank} dimensions, {dims}")


def check_heads(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, str, str], head_axis: int) -> None:
    heads, heads_kv = q.shape[head_axis], k.shape[head_axis]
    if v.shape[head_axis] != heads_kv:
        raise ValueError(
            f"{names[2]} has {v.shape[head_axis]} heads but {names[1]} has {heads_kv}; they must be the same"
        )
    if heads != heads_kv and (heads_kv == 0 or heads % heads_kv != 0):
        raise ValueError(f"{names[0]} has {heads} heads, which is not a multiple of the {heads_kv} heads of {names[1]}")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"{names[1]} has head dim {k.shape[-1]} but {names[0]} has {q.shape[-1]}; they must be the same"
        )
    for name, t in ((names[0], q), (names[2], v)):
        if not 1 <= t.shape[-1] <= MAX_HEAD_DIM:
            raise ValueError(f"{name} has head dim {t.shape[-1]}; accepted are 1 to {MAX_HEAD_DIM}")


def broadcast_strides(t: Tensor) -> tuple[int, ...]:
    """The strides, 0 along dimensions of size 1, so that every index reads the one element."""
    return tuple(0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True))


def check_window(window: Any) -> tuple[int, int]:
    """(left, right) with -1 for no limit."""
    if window is None:
        return -1, -1
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window={window!r} must be (left, right), each an int >= 0 or None for no limit")
    sides = [-1 if side is None else check_int("a side of window", side) for side in window]
    if any(given is not None and side < 0 for given, side in zip(window, sides, strict=True)):
        raise ValueError(f"window={window!r} must not be negative; use None for no limit")
    return sides[0], sides[1]


def check_features(
    q: Tensor,
    batch: int,
    heads: int,
    seqlen_q: int,
    seqlen_k: int,
    *,
    mask: Any,
    causal: Any,
    window: Any,
    softcap: Any,
    alibi_slopes: Any,
    sinks: Any,
    scale: Any,
) -> Features:
    if mask is not None:
        mask = check_mask("mask", mask, (batch, heads, seqlen_q, seqlen_k), "q", q)
    if causal is not None:
        check_causal(causal)
    left, right = check_window(window)
    softcap = check_factor("softcap", softcap)
    if softcap < 0:
        raise ValueError(f"softcap={softcap} must not be negative; 0 turns it off")
    if alibi_slopes is not None:
        alibi_slopes = _check_alibi(alibi_slopes, q, batch, heads)
    if sinks is not None:
        sinks = _check_sinks(sinks, q, heads)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else check_factor("scale", scale)
    if softcap > 0:
        check_factor("scale / softcap", scale / softcap)
    return Features(mask, alibi_slopes, sinks, causal, left, right, softcap, scale)


def _check_alibi(slopes: Any, q: Tensor, batch: int, heads: int) -> Tensor:
    check_float_tensor("alibi_slopes", slopes)
    check_device("alibi_slopes", slopes, "q", q)
    if tuple(slopes.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"alibi_slopes of shape {shape(slopes)} must be (H,) = ({heads},) or (B, H) = ({batch}, {heads})"
        )
    if slopes.requires_grad:
        raise ValueError("alibi_slopes requires a gradient, which it does not have; pass a float mask, or detach it")
    expanded: Tensor = slopes.to(torch.float32).expand(batch, heads)
    return expanded


def _check_sinks(sinks: Any, q: Tensor, heads: int) -> Tensor:
    check_float_tensor("sinks", sinks)
    check_device("sinks", sinks, "q", q)
    sinks = wide_under_autocast(sinks)
    if sinks.dtype not in (q.dtype, torch.float32):
        raise TypeError(f"sinks has dtype {sinks.dtype}; accepted are float32 and q's dtype {q.dtype}")
    if tuple(sinks.shape) != (heads,):
        raise ValueError(f"sinks of shape {shape(sinks)} must be (H,) = ({heads},)")
    contiguous: Tensor = sinks.contiguous()  # a column of a matrix, or one number for all heads
    return contiguous


def pairs(seqlen_q: int, seqlen_k: int, causal: str | None, left: int, right: int) -> int:
    """How many (query, key) pairs of one head the causal bound and the window keep; masks are data and not counted."""
    shift = 0 if causal == "top_left" else seqlen_k - seqlen_q
    if causal is None and left < 0 and right < 0:
        return seqlen_q * seqlen_k
    total = 0
    for i in range(seqlen_q):
        high = seqlen_k - 1
        if causal is not None:
            high = min(high, i + shift)
        if right >= 0:
            high = min(high, i + shift + right)
        low = max(0, i + shift - left) if left >= 0 else 0
        total += max(0, high - low + 1)
    return total


def tensor_bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
