"""What only a host check catches, with that check off, as on a GPU: boundaries, lengths and pages that fit no tensor.

Every tensor, outputs and workspaces too, lies in the middle of NaN. A kernel that reads outside of one shows it in its
results, and one that writes outside shows it in the NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from tilewright.ops import kvcache_attention, varlen_attention
from tilewright.registry import Implementation, find

HEADS, HEADS_KV, HEAD_DIM, AROUND = 4, 2, 16, 4096
OPTIONS = {
    "mask": None, "causal": None, "window": None, "softcap": 0.0, "alibi_slopes": None, "sinks": None, "scale": None,
}  # fmt: skip
INT32 = 2**31 - 1


class Guard(TorchDispatchMode):
    """Inside, whatever is allocated for floats lies between NaN."""

    ALLOCATIONS = (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.empty_like.default,
    )

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in self.ALLOCATIONS or not made.is_floating_point():
            return made
        return self.place(torch.full_like(made, math.nan))

    def place(self, values: Tensor) -> Tensor:
        block = torch.full((values.numel() + 2 * AROUND,), math.nan, dtype=values.dtype, device=values.device)
        block[AROUND:-AROUND] = values.flatten()
        self._blocks.append(block)
        return block[AROUND:-AROUND].view(values.shape)

    def check(self) -> None:
        wrong = [b.shape for b in self._blocks if not (b[:AROUND].isnan().all() and b[-AROUND:].isnan().all())]
        assert not wrong, f"written outside of tensors of {[n[0] - 2 * AROUND for n in wrong]} elements"


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard() as active:
        yield active
    active.check()


def implementation(op: str, backend: str = "triton") -> Implementation:
    found = find(op, backend)
    assert not isinstance(found, str), found
    return found


#: cu_seqlens_q and cu_seqlens_k for 40 rows and 50 keys, of which a sequence has at most 30.
WILD = {
    "negative": ([-5, 3, 20, 40], [0, -7, 25, 50]),
    "falling": ([0, 20, 10, 40], [0, 30, 5, 50]),
    "past the end": ([0, 20, 60, 90], [0, 51, 70, 200]),
    "longer than the longest": ([0, 40, 40, 40], [0, 50, 50, 50]),
    "sums past 32 bits": ([-INT32 - 1, INT32, -INT32 - 1, INT32], [INT32, -INT32 - 1, INT32, -INT32 - 1]),
    "all of it": ([INT32, INT32, INT32, INT32], [-1, -1, -1, -1]),
}


def ranges(boundaries: list[int], total: int, longest: int) -> list[slice]:
    """The rows of each sequence, as kernels are to take them."""
    inside = [min(max(b, 0), total) for b in boundaries]
    return [slice(a, a + min(max(b - a, 0), longest)) for a, b in itertools.pairwise(inside)]


@pytest.mark.parametrize("name", WILD)
def test_packed_sequences_stay_within_the_tensors(name: str, guard: Guard) -> None:
    rows, keys, longest = 40, 50, 30
    q = guard.place(torch.randn(rows, HEADS, HEAD_DIM))
    k, v = (guard.place(torch.randn(keys, HEADS_KV, HEAD_DIM)) for _ in "kv")
    mask = guard.place(torch.randn(3, 1, longest, longest))

    def prepared(q: Tensor, k: Tensor, v: Tensor, of_q: list[int], of_k: list[int], mask: Tensor) -> Any:
        boundaries = (torch.tensor(b, dtype=torch.int32) for b in (of_q, of_k))
        options = {**OPTIONS, "mask": mask, "causal": "bottom_right", "dropout_p": 0.0, "deterministic": False}
        return varlen_attention.prepare(q, k, v, *boundaries, longest, longest, **options)

    call, found = prepared(q, k, v, *WILD[name], mask), implementation("varlen_attention")
    outputs = found.forward(call)
    sequences = list(zip(ranges(WILD[name][0], rows, longest), ranges(WILD[name][1], keys, longest), strict=True))
    for b, (of_q, of_k) in enumerate(sequences):
        others = {r for n, (s, _) in enumerate(sequences) if n != b for r in range(s.start, s.stop)}
        if of_q.start == of_q.stop or others & set(range(of_q.start, of_q.stop)):
            continue  # rows of two sequences are written by both
        lengths = ([0, s.stop - s.start] for s in (of_q, of_k))
        alone = prepared(q[of_q], k[of_k], v[of_k], *lengths, mask[b : b + 1])
        expected = implementation("varlen_attention", "reference").forward(alone)[0]
        torch.testing.assert_close(outputs[0][of_q], expected, atol=1e-5, rtol=1e-5)
    dout = guard.place(torch.randn(rows, HEADS, HEAD_DIM))
    assert found.backward is not None
    found.backward(call, outputs, (dout, None), (True, True, True, True, False))


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("splits", [1, 3, 1000])
def test_caches_are_read_and_written_within_the_tensors(paged: bool, splits: int, guard: Guard) -> None:
    """Sequences with lengths that do not fit, and pages that do not exist; three new positions are written."""
    batch, capacity, page_size, pages = 5, 96, 16, 8
    shape = (pages, HEADS_KV, page_size, HEAD_DIM) if paged else (batch, HEADS_KV, capacity, HEAD_DIM)
    k_cache, v_cache = (guard.place(torch.randn(*shape)) for _ in "kv")
    q = guard.place(torch.randn(batch, HEADS, 3, HEAD_DIM))
    k, v = (guard.place(torch.randn(batch, HEADS_KV, 3, HEAD_DIM)) for _ in "kv")
    lengths = torch.tensor([-INT32, -2, 500, INT32, 40], dtype=torch.int32)
    table = torch.randint(-10, 20, (batch, capacity // page_size), dtype=torch.int32)
    table[0], table[1] = INT32, -INT32 - 1
    call = kvcache_attention.prepare(
        q, k_cache, v_cache, k=k, v=v, cache_seqlens=lengths, block_table=table if paged else None, num_splits=splits,
        layout="bhsd", **OPTIONS,
    )  # fmt: skip
    before = k_cache.clone()
    out, lse = implementation("kvcache_attention").forward(call)
    assert out.isfinite().all(), "something outside of the caches was read"
    assert not lse.isnan().any()
    if not paged:
        assert torch.equal(k_cache[0], before[0]) and torch.equal(k_cache[3], before[3])  # 2^31 - 1 + 3 is negative
        assert torch.equal(k_cache[1, :, :1], k[1, :, 2:]) and torch.equal(k_cache[1, :, 1:], before[1, :, 1:])
        assert torch.equal(k_cache[2, :, -3:], k[2]), "a length past the capacity ends there"
        assert torch.equal(k_cache[4, :, 40:43], k[4])


def test_a_cache_without_pages_is_not_touched(guard: Guard) -> None:
    q, k = torch.randn(2, HEADS, 1, HEAD_DIM), torch.randn(2, HEADS_KV, 1, HEAD_DIM)
    cache = guard.place(torch.randn(0, HEADS_KV, 16, HEAD_DIM))
    call = kvcache_attention.prepare(
        q, cache, cache, k=k, v=k, cache_seqlens=torch.tensor([5, 9], dtype=torch.int32),
        block_table=torch.zeros(2, 3, dtype=torch.int32), num_splits=0, layout="bhsd", **OPTIONS,
    )  # fmt: skip
    out, _ = implementation("kvcache_attention").forward(call)
    assert torch.equal(out, torch.zeros_like(out))
