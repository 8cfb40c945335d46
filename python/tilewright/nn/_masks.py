"""torch.nn.MultiheadAttention's two masks, where True means ignored, as the one mask that our ops take."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops._checks import check_dense, check_device, shape, wide_under_autocast


def check_mask_type(name: str, mask: Any, query: Tensor) -> Tensor | None:
    """The mask, or None; under autocast, which casts it as it casts the scores, a half one in float32."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(mask).__name__}")
    check_dense(name, mask)
    checked = wide_under_autocast(mask)
    if checked.dtype not in (torch.bool, torch.float32, query.dtype):
        raise TypeError(
            f"{name} has dtype {mask.dtype}; accepted are bool (True is ignored), float32, or query's dtype "
            f"{query.dtype} (added)"
        )
    check_device(name, mask, "query", query)
    return checked


def merge_masks(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    batched: bool,
    sizes: tuple[int, int, int, int],
    appended: int,
) -> Tensor | None:
    """Broadcastable to (N, H, L, S + appended): bool with True attending, or float.

    sizes: (N, H, L, S). appended: positions at the end that no mask speaks of; every query sees them.
    """
    batch, heads, length, keys = sizes
    parts: list[Tensor] = []
    if attn_mask is not None:
        if tuple(attn_mask.shape) == (length, keys):
            parts.append(attn_mask.view(1, 1, length, keys))
        elif tuple(attn_mask.shape) == (batch * heads, length, keys):
            parts.append(attn_mask.unflatten(0, (batch, heads)))
        else:
            raise ValueError(
                f"attn_mask has shape {shape(attn_mask)}; it must be (L, S) = ({length}, {keys}) or "
                f"(N * H, L, S) = ({batch * heads}, {length}, {keys})"
            )
    if key_padding_mask is not None:
        expected = (batch, keys) if batched else (keys,)
        if tuple(key_padding_mask.shape) != expected:
            raise ValueError(
                f"key_padding_mask has shape {shape(key_padding_mask)}; it must be "
                f"{'(N, S)' if batched else '(S,)'} = {expected}"
            )
        parts.append(key_padding_mask.view(batch, 1, 1, keys))
    if appended:
        parts = [F.pad(part, (0, appended)) for part in parts]
    if not parts:
        return None
    merged = parts[0] if len(parts) == 1 else _both(*parts)
    return merged.logical_not() if merged.dtype == torch.bool else merged


def _both(a: Tensor, b: Tensor) -> Tensor:
    """What either mask excludes is excluded; what both add is added."""
    if a.dtype == torch.bool and b.dtype == torch.bool:
        return a | b
    if a.dtype == torch.bool:
        a, b = b, a
    return a.masked_fill(b, -torch.inf) if b.dtype == torch.bool else a + b
