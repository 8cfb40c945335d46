"""What a call of attention is to a Triton kernel: its options as constants, its head dims as tiles, its tensors as they
are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from ..ops._features import broadcast_strides
from ..triton_kernels.attention_table import load_of, table_key
from ..triton_kernels.descriptor import describable, describe, has_tma
from ..triton_kernels.launch import Config, config, number

#: A loop over fewer blocks does not repay what descriptors cost on the host.
TMA_BLOCKS = 2
#: A window is cut down to this: sums of it and positions then fit into 32 bits, and no sequence is longer.
WIDEST_WINDOW = 2**30


def features(call: Any) -> dict[str, Any]:
    """The constants that the options of a call choose, and their values."""
    mask = call.mask
    return {
        "MASK": "" if mask is None else "bool" if mask.dtype == torch.bool else "float",
        "HAS_ALIBI": call.alibi_slopes is not None,
        "HAS_SOFTCAP": call.softcap > 0.0,
        "HAS_LEFT": call.window_left >= 0,
        "HAS_RIGHT": call.window_right >= 0 or call.causal is not None,
        "TOP_LEFT": call.causal == "top_left",
        "left": min(call.window_left, WIDEST_WINDOW),
        "right": 0 if call.causal is not None else min(call.window_right, WIDEST_WINDOW),
        "scale": number(abs(call.scale) or 1.0),
        "sign": float((call.scale > 0.0) - (call.scale < 0.0)),
        "SIGNED": call.scale <= 0.0,
        "softcap": number(call.softcap),
    }


def logit_unit(call: Any) -> float:
    """What a row's maximum is to be multiplied by to be a logit: the kernels' `unit`."""
    added = (call.mask is not None and call.mask.dtype != torch.bool) or call.alibi_slopes is not None
    return 1.0 if added else call.softcap or abs(call.scale) or 1.0


def padded_widths(head_dim: int, head_dim_v: int) -> dict[str, Any]:
    """Head dims are padded to powers of two inside the kernel, at least to what a matrix instruction takes."""
    block_d, block_dv = (max(16, triton.next_power_of_2(n)) for n in (head_dim, head_dim_v))
    return {
        "BLOCK_D": block_d,
        "BLOCK_DV": block_dv,
        "CHECK_D": block_d != head_dim,
        "CHECK_DV": block_dv != head_dim_v,
        "head_dim": head_dim,
        "head_dim_v": head_dim_v,
    }


def chosen_config(kernel: str, call: Any, widths: dict[str, Any]) -> Config:
    load = load_of(
        mask=call.mask is not None,
        dropout=getattr(call, "rng", None) is not None,
        alibi=call.alibi_slopes is not None,
        softcap=call.softcap > 0.0,
        window=call.window_left >= 0,
        packed=hasattr(call, "cu_seqlens_q"),
    )
    width = max(widths["BLOCK_D"], widths["BLOCK_DV"])
    return config(kernel, table_key(call.q.element_size(), width, load), call.q.device)


def boxes_of(a: Tensor, b: Tensor, block: int, widths: dict[str, Any], packed_rows: bool) -> tuple[Any, Any]:
    """For a kernel that loops in blocks over the rows of a and of b, (B, H, S, D) or (total, H, D): their descriptors,
    or (None, None) where it has to load by pointers. (float32 has to: its products are split, which TMA cannot do.)"""
    rows = a.shape[0 if packed_rows else 2]
    if a.element_size() != 2 or rows < TMA_BLOCKS * block:
        return None, None
    if not (has_tma(a.device) and describable(a) and describable(b)):
        return None, None
    if packed_rows:
        a, b = a.transpose(0, 1)[None], b.transpose(0, 1)[None]
    return describe(a, (1, 1, block, widths["BLOCK_D"])), describe(b, (1, 1, block, widths["BLOCK_DV"]))


#: What strides and head dims, in elements, have to be multiples of for wide loads, as Triton's compiler counts.
ALIGNED = 16


def aligned(t: Tensor) -> Tensor:
    """t, or a copy whose rows begin and end at multiples of 16 elements, with zeros past their own.

    Others are read and written two bytes at a time: not asynchronously, and with an address for each element. At head
    dim 100 the forward kernel for Hopper spilled 226 of them, at 255 a thousand.
    """
    if t.data_ptr() % 16 == 0 and all(n % ALIGNED == 0 for n in (t.shape[-1], *t.stride()[:-1])):
        return t
    copy = t.new_zeros((*t.shape[:-1], triton.cdiv(t.shape[-1], ALIGNED) * ALIGNED))
    copy[..., : t.shape[-1]] = t
    return copy


def room_for(t: Tensor) -> Tensor:
    """t, or memory for what is to be written to it, where its rows do not end at multiples of 16 elements."""
    if t.shape[-1] % ALIGNED == 0:
        return t
    return t.new_empty((*t.shape[:-1], triton.cdiv(t.shape[-1], ALIGNED) * ALIGNED))


def hand_over(written: Tensor | None, t: Tensor | None) -> None:
    if t is not None and written is not None and written is not t:
        t.copy_(written[..., : t.shape[-1]])


def bytes_of(mask: Tensor | None) -> Tensor | None:
    """A bool mask as the bytes that it is."""
    return mask.view(torch.uint8) if mask is not None and mask.dtype == torch.bool else mask


def strides_of(t: Tensor | None, rank: int) -> tuple[int, ...]:
    return (0,) * rank if t is None else broadcast_strides(t)


def batched(t: Tensor) -> tuple[int, ...]:
    """(batch, head, row) strides of (B, H, S) or (B, H, S, D)."""
    return t.stride()[:3]


def packed_rows_first(t: Tensor) -> tuple[int, ...]:
    """The same of packed (total, H, D), or (H, total)."""
    return (0, *t.stride()) if t.dim() == 2 else (0, t.stride(1), t.stride(0))


def in_rows(strides: Callable[[Tensor], tuple[int, ...]], t: Tensor) -> tuple[int, ...]:
    """(batch, head) strides of (B, H, S, n), or (H, total, n), contiguous: in rows of n numbers."""
    return tuple(s // t.shape[-1] for s in strides(t[..., 0])[:2])
