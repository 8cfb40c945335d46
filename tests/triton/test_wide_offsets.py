"""Elements that lie 2^31 or more apart: offsets need 64 bits. Most of the memory below is never touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import tilewright as tw

ROWS, FAR = 40, 2**26  # the last of 40 rows or keys begins past 2^31 elements


def far_apart(values: Tensor, dim: int) -> Tensor:
    """The same numbers, in steps of FAR elements along a dimension."""
    strides = [0] * values.dim()
    step = 1
    for d in reversed([d for d in range(values.dim()) if d != dim]):
        strides[d], step = step, step * values.shape[d]
    strides[dim] = FAR
    return torch.empty_strided(values.shape, strides, dtype=values.dtype, device=values.device).copy_(values)


def test_a_mask_s_keys() -> None:
    q, k = torch.randn(1, 2, 3, 16), torch.randn(1, 2, ROWS, 16)
    mask = torch.rand(1, 1, 3, ROWS) > 0.4
    found, expected = (
        tw.attention(q, k, k, mask=m, backend=b) for m, b in ((far_apart(mask, 3), "triton"), (mask, "reference"))
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("paged", [False, True])
def test_a_cache_s_rows(paged: bool) -> None:
    """Those that are read and those that are written."""
    q, new = torch.randn(1, 2, 2, 16).half(), torch.randn(1, 2, 2, 16).half()
    values = torch.randn(1, 2, ROWS, 16).half()
    table = torch.zeros(1, 1, dtype=torch.int32) if paged else None
    found = []
    for far, backend in ((True, "triton"), (False, "reference")):
        caches = [far_apart(values, 2) if far else values.clone() for _ in "kv"]
        out = tw.kvcache_attention(q, *caches, k=new, v=new, cache_seqlens=ROWS - 2, block_table=table, backend=backend)
        found.append((out, *(cache[:, :, -2:].clone() for cache in caches)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-3, rtol=2e-3)
    assert all(torch.equal(rows, new) for rows in found[0][1:]), "new rows were written elsewhere"
