"""One new query for each sequence over its key/value cache: bound by reading the cache, or by latency."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

import tilewright as tw

from .attention import forwards
from .measure import Bench, Built, Item, distance

HEADS, HEADS_KV, HEAD_DIM = 32, 8, 128
LATENCY = "decode latency B1 KV1024"


def items(shapes: str) -> Iterator[Item]:
    """Caches of 512 MB, larger than any cache of the chip; and the shortest call."""
    if shapes == "tiny":
        yield _item("decode B2 KV64", 2, 64, 4, 2, 16, latency=False)
        yield _item("decode latency B1 KV32", 1, 32, 4, 2, 16, latency=True)
        return
    for batch in (1, 8, 64):
        seqlen = 131072 // batch
        yield _item(f"decode B{batch} KV{seqlen}", batch, seqlen, HEADS, HEADS_KV, HEAD_DIM, latency=False)
    yield _item(LATENCY, 1, 1024, HEADS, HEADS_KV, HEAD_DIM, latency=True)


def _item(name: str, batch: int, seqlen: int, heads: int, heads_kv: int, head_dim: int, *, latency: bool) -> Item:
    moved = 2.0 * (2 * batch * heads_kv * seqlen * head_dim + 2 * batch * heads * head_dim)
    sizes = {"batch": batch, "heads": heads, "heads_kv": heads_kv, "seqlen_k": seqlen, "head_dim": head_dim}
    return Item(
        name,
        "us" if latency else "GB/s",
        functools.partial(_build, **sizes),
        moved,
        cold=not latency,
        facts={"op": "kvcache_attention", "mode": "forward", "dtype": "bfloat16", "bytes": moved, **sizes},
    )


def _build(bench: Bench, batch: int, heads: int, heads_kv: int, seqlen_k: int, head_dim: int) -> Built:
    q = bench.normal(batch, heads, 1, head_dim)
    k, v = (bench.normal(batch, heads_kv, seqlen_k, head_dim) for _ in range(2))
    lengths = torch.full((batch,), seqlen_k, dtype=torch.int32, device=bench.device)
    group = heads // heads_kv

    @functools.cache
    def expected() -> list[torch.Tensor]:
        outs = []
        for b in range(batch):
            rows = q[b].view(heads_kv, group, head_dim).double()
            weights = torch.softmax(rows @ k[b].double().transpose(1, 2) * head_dim**-0.5, -1)
            outs.append((weights @ v[b].double()).view(heads, 1, head_dim))
        return [torch.stack(outs)]

    def error(result: Any) -> float:
        return distance([result], expected())

    makers = {**bench.ours(tw.kvcache_attention, cache_seqlens=lengths), **forwards(bench, False, 1, seqlen_k, group)}
    return Built({n: (lambda make=make: functools.partial(make(), q, k, v)) for n, make in makers.items()}, error)
