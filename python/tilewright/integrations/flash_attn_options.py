"""The options that every function of FlashAttention takes, turned into the options of our attention ops."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from ..ops._checks import check_factor, check_float_tensor, shape


def as_int(name: str, value: Any) -> int:
    """A Python int; one-element integer tensors are read, as FlashAttention reads them (on a GPU that waits for it)."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]  # a symbolic size while compiling
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point() and value.dtype != torch.bool:
        return int(value.item())
    if not isinstance(value, (bool, Tensor)) and hasattr(value, "__index__"):
        return operator.index(value)
    raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def as_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def _window(window_size: Any, causal: bool) -> tuple[int | None, int | None] | None:
    """FlashAttention's (left, right), where a negative side has no limit; causal attention ignores the right side."""
    try:
        left, right = window_size
    except (TypeError, ValueError):
        raise TypeError(f"window_size={window_size!r} must be (left, right), two ints; -1 is no limit") from None
    left, right = as_int("window_size[0]", left), as_int("window_size[1]", right)
    return (left if left >= 0 else None, right if right >= 0 and not causal else None)


def attention_options(
    *, causal: Any, window_size: Any, softcap: Any, softmax_scale: Any, alibi_slopes: Any
) -> dict[str, Any]:
    """Keyword arguments of our ops' ``prepare``, masks and sinks (which FlashAttention 2 has not) turned off."""
    causal = as_bool("causal", causal)
    return {
        "causal": "bottom_right" if causal else None,
        "window": _window(window_size, causal),
        "softcap": max(0.0, check_factor("softcap", softcap)),  # FlashAttention: anything <= 0 turns it off
        "scale": None if softmax_scale is None else check_factor("softmax_scale", softmax_scale),
        "alibi_slopes": alibi_slopes,
        "mask": None,
        "sinks": None,
    }


def unpack(name: str, packed: Any, rank: int, parts: int, dims: str) -> tuple[Tensor, ...]:
    """Views of the queries, keys and values that lie in one tensor, side by side in its third last dimension."""
    check_float_tensor(name, packed)
    if packed.dim() != rank or packed.shape[-3] != parts:
        raise ValueError(f"{name} has shape {shape(packed)}; it must be {dims}")
    views: tuple[Tensor, ...] = packed.unbind(-3)
    return views
