"""The key/value cache of incremental decoding: allocated once, appended to in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LayerCache(NamedTuple):
    """One layer's share of a :class:`KVCache`, as :func:`tilewright.kvcache_attention` takes it with layout "bshd".

    k, v: views (B, S_max, H, D); seqlens: (B,) int32, tokens held before this step.
    """

    k: Tensor
    v: Tensor
    seqlens: Tensor


class KVCache:
    """Keys and values of every layer, (layers, B, H, S_max, D) each, and how many tokens each sequence holds.

    Sequences may differ in length: ``seqlens`` (B,) int32 counts each one's tokens, so a batch of different prompts
    needs no padding inside the cache and no mask. The memory never moves.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        for name, value in (
            ("layers", layers),
            ("batch", batch),
            ("heads", heads),
            ("capacity", capacity),
            ("head_dim", head_dim),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        # Zeros, not empty: slots past a sequence's end are excluded by length, but must not hold NaN bit patterns that
        # a tile-wide 0 * x would spread.
        self.k = torch.zeros(layers, batch, heads, capacity, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.seqlens = torch.zeros(batch, dtype=torch.int32, device=device)
        # The longest sequence, known on the host: checking for room must not wait for the device.
        self.longest = 0

    @property
    def batch(self) -> int:
        return self.k.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens that each sequence can hold."""
        return self.k.shape[3]

    def layer(self, index: int) -> LayerCache:
        # (B, H, S, D) in memory keeps one head's keys together, which is what decoding streams through.
        return LayerCache(self.k[index].transpose(1, 2), self.v[index].transpose(1, 2), self.seqlens)

    def check_room(self, batch: int, length: int) -> None:
        """Raise ``ValueError`` unless ``length`` more tokens fit after each of ``batch`` sequences."""
        if batch != self.batch:
            raise ValueError(f"input_ids holds {batch} sequences but the cache was made for {self.batch}")
        if self.longest + length > self.capacity:
            raise ValueError(
                f"the cache is full: its longest sequence holds {self.longest} tokens, {length} more were given, "
                f"and its capacity is {self.capacity}"
            )

    def advance(self, lengths: Tensor | int) -> None:
        """Count tokens just appended: as many for every sequence, or ``lengths`` (B,) of them."""
        self.seqlens += lengths
        self.longest = self.longest + lengths if isinstance(lengths, int) else int(self.seqlens.max())

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        self.seqlens.zero_()
        self.longest = 0
