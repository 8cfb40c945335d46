"""Rotary position embeddings (Su et al., "RoFormer", 2021) with the interface of ``flash_attn.layers.rotary``.

Plain torch, differentiable, on any device. The arithmetic is float32 (float64 for float64 tensors) and is rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops._checks import accumulator, check_device, check_float_tensor, check_lengths, shape
from .flash_attn_options import as_int


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x (..., H, D), cos and sin (..., 1, R / 2): the first R features turned in pairs, the others as they are."""
    dtype = accumulator(x.dtype)
    rotary_dim = 2 * cos.shape[-1]
    turned, rest = x[..., :rotary_dim].to(dtype), x[..., rotary_dim:]
    cos, sin = cos.to(dtype), sin.to(dtype)
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = (a * cos - b * sin, a * sin + b * cos)
    whole = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((whole.to(x.dtype), rest), -1)


def check_tables(cos: Any, sin: Any, names: tuple[str, str], like_name: str, like: Tensor) -> None:
    """Two tables of one shape, with rotary_dim at most ``like``'s head dim."""
    for name, table in zip(names, (cos, sin), strict=True):
        check_float_tensor(name, table)
        check_device(name, table, like_name, like)
        if table.dim() != 2 or 2 * table.shape[1] > like.shape[-1] or table.shape != cos.shape:
            raise ValueError(
                f"{name} has shape {shape(table)}; {names[0]} and {names[1]} must both be (positions, rotary_dim / 2) "
                f"with rotary_dim at most the head dim of {like_name}, {like.shape[-1]}"
            )


def look_up(cos: Tensor, sin: Tensor, positions: Tensor, names: str) -> tuple[Tensor, Tensor]:
    """The rows of the tables at ``positions``, with a dimension for the heads: positions' shape + (1, R / 2).

    Positions in host memory are checked. On a GPU, where that would stall the stream, ones past the table's end read
    its last row, as reading outside it would fault.
    """
    last = cos.shape[0] - 1
    if positions.device.type == "cpu" and not torch.compiler.is_compiling() and positions.numel() > 0:
        low, high = (int(t) for t in positions.aminmax())
        if low < 0 or high > last:
            raise ValueError(f"{names} have {last + 1} positions, but {low} to {high} are needed")
    positions = positions.clamp(0, max(last, 0))
    return cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2)


def positions_from(offsets: Any, name: str, length: int, x: Tensor) -> Tensor:
    """(1 or B, length) int64: 0, 1, ... after an int offset, or after one offset for each sequence."""
    steps = torch.arange(length, device=x.device)
    if not isinstance(offsets, Tensor):
        return (steps + as_int(name, offsets))[None]
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.shape != x.shape[:1]:
        raise ValueError(
            f"{name} is {offsets.dtype} of shape {shape(offsets)}; accepted are an int, or int32 or int64 of shape (B,)"
            f" = ({x.shape[0]},)"
        )
    return steps + offsets[:, None]


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """``flash_attn.layers.rotary.apply_rotary_emb``: the first rotary_dim features of x, rotated.

    Args:
        x: (B, S, H, D), or (total, H, D) with cu_seqlens; float.
        cos, sin: (positions, rotary_dim / 2), float, of any dtype.
        interleaved: rotate features 0 and 1, 2 and 3, ... (GPT-J) instead of the first half with the second (GPT-NeoX).
        inplace: write the result into x, and return x.
        seqlen_offsets: the position of each sequence's first row, an int or (B,) int32 or int64.
        cu_seqlens: (B + 1,) int32 boundaries of packed sequences, from 0 to total.
        max_seqlen: accepted for its place in the signature; the lengths are in cu_seqlens.

    Returns:
        x's shape and dtype; x itself with inplace.

    Raises:
        TypeError, ValueError: an argument is wrong, or the tables are too short (checked where positions lie in host
        memory).
    """
    check_float_tensor("x", x)
    packed = cu_seqlens is not None
    if x.dim() != (3 if packed else 4):
        raise ValueError(f"x has shape {shape(x)}; it must be {'(total, H, D)' if packed else '(B, S, H, D)'}")
    check_tables(cos, sin, ("cos", "sin"), "x", x)
    positions = _packed_positions(cu_seqlens, seqlen_offsets, x) if cu_seqlens is not None else None
    if positions is None:
        positions = positions_from(seqlen_offsets, "seqlen_offsets", x.shape[1], x)
    out = rotate(x, *look_up(cos, sin, positions, "cos and sin"), interleaved)
    return x.copy_(out) if inplace else out


def _packed_positions(cu_seqlens: Tensor, offsets: Any, x: Tensor) -> Tensor:
    batch = cu_seqlens.shape[0] - 1 if isinstance(cu_seqlens, Tensor) and cu_seqlens.dim() == 1 else 0
    check_lengths("cu_seqlens", cu_seqlens, batch + 1, "B + 1 boundaries", x)
    rows = torch.arange(x.shape[0], device=x.device, dtype=torch.int32)
    # Rows after the last boundary belong to no sequence; they are taken as the last one's.
    sequence = (torch.searchsorted(cu_seqlens, rows, right=True) - 1).clamp(0, max(batch - 1, 0))
    within = rows - cu_seqlens[sequence]
    if not isinstance(offsets, Tensor):
        return within + as_int("seqlen_offsets", offsets)
    check_lengths("seqlen_offsets", offsets.int(), batch, "one offset per sequence", x)
    return within + offsets[sequence]
