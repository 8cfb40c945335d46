"""Rotary position embeddings (Su et al., "RoFormer", 2021) with the interface of ``flash_attn.layers.rotary``.

Plain torch, differentiable, on any device. The arithmetic is float32 (float64 for float64 tensors) and is rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops._checks import accumulator, check_device, check_float_tensor, check_lengths, shape
from .flash_attn_options import as_int

__all__ = [
    "RotaryEmbedding",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
]


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


#: The older name of the same function.
apply_rotary_emb_func = apply_rotary_emb


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """``flash_attn.layers.rotary.apply_rotary_emb_qkv_``: rotates queries and keys in place, and returns qkv.

    Args:
        qkv: (B, S, 3, H, D), or (B, S, num_heads_q + 2 * Hkv, D) with num_heads_q.
        cos, sin, cos_k, sin_k: (positions, rotary_dim / 2); the keys' are the queries' when None.
        interleaved, seqlen_offsets: as in :func:`apply_rotary_emb`.
    """
    check_float_tensor("qkv", qkv)
    if qkv.dim() == 5 and qkv.shape[2] == 3:
        q, k = qkv[:, :, 0], qkv[:, :, 1]
    elif qkv.dim() == 4 and num_heads_q is not None and (others := qkv.shape[2] - num_heads_q) >= 0 == others % 2:
        q, k = qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + others // 2]
    else:
        raise ValueError(
            f"qkv of shape {shape(qkv)} with num_heads_q={num_heads_q} must be (B, S, 3, H, D), or "
            "(B, S, num_heads_q + 2 * Hkv, D) with num_heads_q"
        )
    apply_rotary_emb(q, cos, sin, interleaved, True, seqlen_offsets)
    apply_rotary_emb(
        k, cos if cos_k is None else cos_k, sin if sin_k is None else sin_k, interleaved, True, seqlen_offsets
    )
    return qkv


def apply_rotary_emb_kv_(
    kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: int | Tensor = 0
) -> Tensor:
    """``flash_attn.layers.rotary.apply_rotary_emb_kv_``: rotates the keys of kv (B, S, 2, Hkv, D) in place; returns kv.

    The other arguments are those of :func:`apply_rotary_emb`.
    """
    check_float_tensor("kv", kv)
    if kv.dim() != 5 or kv.shape[2] != 2:
        raise ValueError(f"kv has shape {shape(kv)}; it must be (B, S, 2, Hkv, D)")
    apply_rotary_emb(kv[:, :, 0], cos, sin, interleaved, True, seqlen_offsets)
    return kv


class RotaryEmbedding(torch.nn.Module):
    """``flash_attn.layers.rotary.RotaryEmbedding``: tables of cosines and sines, made as far as they are needed.

    Args:
        dim: how many features of each head are rotated; even.
        base: the wave length of feature pair i is 2 pi * base ** (2 i / dim) positions.
        interleaved: as in :func:`apply_rotary_emb`.
        scale_base: XPos (Sun et al., 2022): queries are scaled by position / scale_base, keys inversely. None: neither.
        device: where the frequencies lie.
    """

    inv_freq: Tensor
    scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.base, self.interleaved, self.scale_base = dim, float(base), interleaved, scale_base
        self.register_buffer("inv_freq", self._compute_inv_freq(device), persistent=False)
        steps = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        scale = None if scale_base is None else (steps + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("scale", scale, persistent=False)
        self._seq_len_cached = 0
        self._cos_cached: Tensor | None = None
        self._sin_cached: Tensor | None = None
        self._cos_k_cached: Tensor | None = None
        self._sin_k_cached: Tensor | None = None

    def _compute_inv_freq(self, device: torch.device | str | None = None) -> Tensor:
        return self.base ** (-torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim)

    def _update_cos_sin_cache(
        self, seqlen: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        old = self._cos_cached
        fits = old is not None and seqlen <= self._seq_len_cached and (old.device, old.dtype) == (device, dtype)
        # Tables made in inference mode cannot be saved for a backward.
        if fits and not (self.training and old is not None and old.is_inference()):
            return
        self._seq_len_cached = seqlen
        # Angles are float32 whatever the model's dtype: rounded to 16 bits, far positions would be confused.
        if self.inv_freq.dtype != torch.float32:
            self.inv_freq = self._compute_inv_freq(self.inv_freq.device)
        positions = torch.arange(seqlen, device=device, dtype=torch.float32)
        angles = torch.outer(positions, self.inv_freq.to(device))
        growth = torch.ones_like(angles)
        if self.scale is not None and self.scale_base is not None:
            power = (positions - seqlen // 2) / self.scale_base
            growth = self.scale.to(device, torch.float32) ** power[:, None]
            self._cos_k_cached = (angles.cos() / growth).to(dtype)
            self._sin_k_cached = (angles.sin() / growth).to(dtype)
        self._cos_cached, self._sin_cached = (angles.cos() * growth).to(dtype), (angles.sin() * growth).to(dtype)

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: int | Tensor = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotate queries and keys in place.

        Args:
            qkv: as :func:`apply_rotary_emb_qkv_` takes it; or, with kv, the queries alone, (B, S, H, D).
            kv: (B, S, 2, Hkv, D), or None.
            seqlen_offset: the position of the first row, an int or (B,).
            max_seqlen: how many positions are needed; must be given once before seqlen_offset is a tensor.
            num_heads_q: how many heads of a four-dimensional qkv are queries.

        Returns:
            qkv, or (qkv, kv) with kv.
        """
        if max_seqlen is not None:
            self._update_cos_sin_cache(max_seqlen, qkv.device, qkv.dtype)
        elif isinstance(seqlen_offset, int):
            self._update_cos_sin_cache(qkv.shape[1] + seqlen_offset, qkv.device, qkv.dtype)
        cos, sin = self._cos_cached, self._sin_cached
        if cos is None or sin is None:
            raise ValueError("max_seqlen is None, and seqlen_offset is a tensor: how many positions are needed?")
        cos_k, sin_k = self._cos_k_cached, self._sin_k_cached
        if kv is None:
            return apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, self.interleaved, seqlen_offset, num_heads_q)
        q = apply_rotary_emb(qkv, cos, sin, self.interleaved, True, seqlen_offset)
        of_keys = (cos if cos_k is None else cos_k, sin if sin_k is None else sin_k)
        return q, apply_rotary_emb_kv_(kv, *of_keys, self.interleaved, seqlen_offset)
