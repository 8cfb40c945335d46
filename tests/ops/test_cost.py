"""The least bytes of the attention ops, which rooflines are drawn of: every tensor that is read or written, by its own
size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilewright.catalog import OPS, canonical_call

HEADS, HEADS_KV, D, DV = 4, 2, 16, 24


def cost(op: str, **arguments: Any) -> Any:
    return OPS[op][0].cost(canonical_call(op, **arguments)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_tensor_counts_by_its_own_size(dtype: torch.dtype) -> None:
    """lse is float32, or float64 for float64: a call that stores it counts its bytes."""
    size, of_lse = dtype.itemsize, 8 if dtype == torch.float64 else 4

    def made(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    batch, rows, keys = 3, 5, 7
    per_row = HEADS * (D * size + DV * size + of_lse)  # q, out, lse
    per_key = HEADS_KV * (D + DV) * size
    q, k, v = made(batch, HEADS, rows, D), made(batch, HEADS_KV, keys, D), made(batch, HEADS_KV, keys, DV)
    assert cost("attention", q=q, k=k, v=v).bytes == batch * (rows * per_row + keys * per_key)

    boundaries = torch.tensor([0, 2, 9, 15], dtype=torch.int32)
    packed = {"q": made(15, HEADS, D), "k": made(15, HEADS_KV, D), "v": made(15, HEADS_KV, DV)}
    lengths = {"cu_seqlens_q": boundaries, "cu_seqlens_k": boundaries, "max_seqlen_q": 7, "max_seqlen_k": 7}
    assert cost("varlen_attention", **packed, **lengths).bytes == 15 * (per_row + per_key) + 2 * 4 * 4

    held = torch.tensor([3, 0, 7], dtype=torch.int32)
    found = cost("kvcache_attention", q=q, k_cache=k, v_cache=v, cache_seqlens=held)
    assert found.bytes == batch * rows * per_row + 10 * per_key + 3 * 4
