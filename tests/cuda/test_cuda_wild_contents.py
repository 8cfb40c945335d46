"""What cu_seqlens, lengths, pages and num_splits hold is not checked on a GPU: kernels stay within the tensors whatever
it is. So the check is left out here as well, and the emulator watches where each access goes.

Sequences may overlap then, and two blocks write the same row, the one or the other value: no fault of this test.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tilewright.backends import cuda
from tilewright.ops import kvcache_attention, varlen_attention
from tilewright.ops.kvcache_attention import MAX_SPLITS
from tilewright.verify.case import Maker
from tilewright.verify.traps import same_bits

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="only the emulator sees every access")

INT32 = 2**31
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


@pytest.fixture(autouse=True)
def _ranges_only(_emulated: None) -> None:
    cuda.kernels().watch(history=False)


def _wild(rng: random.Random, limit: int) -> int:
    """An int32 where one from 0 to ``limit`` belongs."""
    kinds: list[Callable[[], int]] = [
        lambda: rng.randint(0, limit),
        lambda: rng.randint(-3, limit + 3),
        lambda: limit + rng.choice((-1, 1)) * rng.randint(1, 5000),
        lambda: rng.randint(-INT32, INT32 - 1),
        lambda: rng.choice((-INT32, INT32 - 1, -1, 0, limit, limit + 1)),
    ]
    return max(-INT32, min(INT32 - 1, rng.choice(kinds)()))


def _options(rng: random.Random, maker: Maker, batch: int, heads: int, queries: int, keys: int) -> dict[str, Any]:
    names = ("alibi_slopes", "causal", "mask", "scale", "sinks", "softcap", "window")
    options: dict[str, Any] = dict.fromkeys(names)
    options["softcap"] = rng.choice((0.0, 0.0, 5.0))
    options["causal"] = rng.choice((None, None, "top_left", "bottom_right"))
    if rng.random() < 0.4:
        options["window"] = (rng.choice((None, 0, 7, 10**12)), rng.choice((None, 0, 7)))
    if rng.random() < 0.5:
        sizes = [rng.choice((1, n)) for n in (batch, heads, queries, keys)]
        options["mask"] = maker.normal(*sizes) if rng.random() < 0.7 else maker.place(maker.draw_bool(0.7, *sizes))
    if rng.random() < 0.3:
        options["alibi_slopes"] = maker.place(torch.rand(batch, heads))
    if rng.random() < 0.4:
        options["sinks"] = maker.normal(heads)
    return options


def _check_guards(maker: Maker, before: list[Tensor], written: tuple[Tensor, ...] = ()) -> None:
    """Of all inputs and what lies around them, nothing has changed but ``written``."""
    for block, old in zip(maker.blocks, before, strict=True):
        for view in written:
            if view.untyped_storage().data_ptr() == block.untyped_storage().data_ptr():
                old.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(view)
        assert same_bits(block, old), "memory around a tensor, or an input, was written to"


@pytest.mark.parametrize("seed", range(80))
def test_packed_sequences(seed: int) -> None:
    rng, maker = random.Random(seed), Maker(seed, DTYPES[seed % 3])
    batch, heads_kv, group = rng.randint(1, 4), rng.randint(1, 2), rng.randint(1, 2)
    totals = [rng.choice((0, 1, 20, 70, 130)) for _ in "qk"]
    longest = [rng.choice((0, 1, 17, 70, total)) for total in totals]
    head_dim, head_dim_v = rng.choice((8, 13, 72)), rng.choice((8, 13))
    q = maker.normal(totals[0], heads_kv * group, head_dim)
    k, v = maker.normal(totals[1], heads_kv, head_dim), maker.normal(totals[1], heads_kv, head_dim_v)
    bounds = [maker.int32([_wild(rng, total) for _ in range(batch + 1)]) for total in totals]
    options = _options(rng, maker, batch, heads_kv * group, *longest)
    if options["mask"] is None and rng.random() < 0.5:
        longest = [rng.choice((10**6, INT32, 2**40)) for _ in "qk"]
    dropout_p = rng.choice((0.0, 0.0, 0.3))
    call = varlen_attention.prepare(
        q, k, v, *bounds, *longest, dropout_p=dropout_p, deterministic=False, **options
    )  # fmt: skip
    before = [block.clone() for block in maker.blocks]
    outputs = cuda.VARLEN_ATTENTION.forward(call)
    wanted = [True, True, True, options["mask"] is not None and options["mask"].dtype != torch.bool]
    wanted.append(options["sinks"] is not None)
    grads = (torch.randn_like(outputs[0]), rng.choice((None, torch.randn_like(outputs[1]))), None)
    assert cuda.VARLEN_ATTENTION.backward is not None
    cuda.VARLEN_ATTENTION.backward(call, outputs, grads, wanted)
    _check_guards(maker, before)


@pytest.mark.parametrize("seed", range(80))
def test_caches(seed: int) -> None:
    rng, maker = random.Random(seed), Maker(seed, DTYPES[seed % 3])
    batch, heads_kv, group = rng.randint(1, 3), rng.randint(1, 2), rng.randint(1, 3)
    seqlen_q, seqlen_new = rng.choice((1, 2, 40)), rng.choice((0, 1, 5))
    head_dim, head_dim_v = rng.choice((8, 13, 72)), rng.choice((8, 13))
    paged = rng.random() < 0.6
    page_size, pages = rng.choice((1, 7, 16)), rng.choice((0, 1, 6))
    width = rng.randint(1, 9)
    rows = (pages, heads_kv, page_size) if paged else (batch, heads_kv, rng.choice((0, 1, 50, 300)))
    capacity = page_size * width if paged else rows[2]
    q = maker.normal(batch, heads_kv * group, seqlen_q, head_dim)
    caches = maker.normal(*rows, head_dim), maker.normal(*rows, head_dim_v)
    fresh = [maker.normal(batch, heads_kv, seqlen_new, d) for d in (head_dim, head_dim_v)]
    call = kvcache_attention.prepare(
        q,
        *caches,
        k=fresh[0] if seqlen_new else None,
        v=fresh[1] if seqlen_new else None,
        cache_seqlens=maker.int32([_wild(rng, capacity) for _ in range(batch)]),
        block_table=maker.int32([[_wild(rng, pages) for _ in range(width)] for _ in range(batch)]) if paged else None,
        num_splits=rng.choice((0, 1, 3, MAX_SPLITS, MAX_SPLITS + 1, INT32, 2**70)),
        layout="bhsd",
        **_options(rng, maker, batch, heads_kv * group, seqlen_q, capacity),
    )
    before = [block.clone() for block in maker.blocks]
    cuda.KVCACHE_ATTENTION.forward(call)
    _check_guards(maker, before, caches)


def test_the_number_of_splits_has_a_limit() -> None:
    """So many keys that a split for each of their tiles would be more than a grid has along y."""
    assert cuda.kernels().MAX_SPLITS == MAX_SPLITS
    cuda.kernels().watch(history=False, blocks=3)
    q = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    cache = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16).expand(1, 1, 70_000 * 16, 8)
    for splits in (70_000, 2**40):
        call = kvcache_attention.prepare(
            q, cache, cache, k=None, v=None, cache_seqlens=None, block_table=None, num_splits=splits, mask=None,
            causal=None, window=None, softcap=0.0, alibi_slopes=None, sinks=None, scale=None, layout="bhsd",
        )  # fmt: skip
        cuda.KVCACHE_ATTENTION.forward(call)
