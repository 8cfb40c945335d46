"""One new query for each sequence over its key/value cache: bound by reading the cache, or by latency."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ...ops.kvcache_attention import kvcache_attention
from .. import exact
from ..measure import Bench, Built, Item, providers_of
from ..peers.decode import PEERS
from ..shapes import Decode

#: Llama-3 8B's.
LLAMA = (32, 8)


def item(shape: Decode, curve: str = "") -> Item:
    size = torch.empty(0, dtype=getattr(torch, shape.dtype)).element_size()
    moved = shape.elements * size
    facts = {"op": "kvcache_attention", "mode": "forward", "label": shape.label, "bytes": moved, **shape.facts()}
    if curve:
        facts.update(curve=curve, size=shape.seqlen_k)
    name = f"decode {shape.name}" + (f" ({curve})" if curve else "")
    unit = "us" if shape.latency else "GB/s"
    return Item(name, unit, functools.partial(_build, shape=shape), moved, cold=not shape.latency, facts=facts)


def items(shapes: str) -> Iterator[Item]:
    for shape in SETS[shapes]():
        yield item(shape)


def _build(bench: Bench, shape: Decode) -> Built:
    batch, heads, heads_kv, head_dim = shape.batch, shape.heads, shape.heads_kv, shape.head_dim
    q = bench.normal(batch, heads, 1, head_dim, dtype=shape.dtype)
    page = shape.page_size or shape.seqlen_k
    per = -(-shape.seqlen_k // page)
    k, v = (bench.normal(batch * per, heads_kv, page, head_dim, dtype=shape.dtype) for _ in range(2))
    table = None
    if shape.page_size is not None:  # as after a while of serving: in no order
        table = torch.randperm(batch * per, device=bench.device).to(torch.int32).view(batch, per)
    lengths = torch.full((batch,), shape.seqlen_k, dtype=torch.int32, device=bench.device)
    group = heads // heads_kv

    @functools.cache
    def expected() -> list[torch.Tensor]:
        outs = []
        for b in range(batch):
            pages = slice(b, b + 1) if table is None else table[b].long()
            keys, values = (t[pages].transpose(0, 1).flatten(1, 2)[:, : shape.seqlen_k].double() for t in (k, v))
            rows = q[b].view(heads_kv, group, head_dim).double()
            weights = torch.softmax(rows @ keys.transpose(1, 2) * head_dim**-0.5, -1)
            outs.append((weights @ values).view(heads, 1, head_dim))
        return [torch.stack(outs)]

    def error(result: Any) -> float:
        return exact.distance([result], expected())

    def ours(make: Any) -> Any:
        return lambda: lambda q, k, v, table: make()(q, k, v, block_table=table)

    made = {n: ours(make) for n, make in bench.ours(kvcache_attention, cache_seqlens=lengths).items()}
    return Built(providers_of(bench, shape, "forward", made, PEERS, (q, k, v, table), q), error)  # type: ignore[arg-type]


def _gpu_first() -> Iterator[Decode]:
    yield Decode("Llama-3 8B", "bfloat16", 8, *LLAMA, 16384, 128)
    yield Decode("Llama-3 8B", "bfloat16", 1, *LLAMA, 1024, 128, latency=True)


def _gpu() -> Iterator[Decode]:
    """Caches of 512 MB, larger than any cache of the chip; and the shortest call."""
    for batch in (1, 8, 64):
        yield Decode("Llama-3 8B", "bfloat16", batch, *LLAMA, 131072 // batch, 128)
    yield Decode("Llama-3 8B", "bfloat16", 1, *LLAMA, 1024, 128, latency=True)


def _gpu_long() -> Iterator[Decode]:
    yield from _gpu()
    for batch, seqlen in ((1, 8192), (1, 262144), (16, 1024), (16, 8192), (256, 1024), (256, 4096)):
        yield Decode("Llama-3 8B", "bfloat16", batch, *LLAMA, seqlen, 128)
    for page in (16, 64, 256):
        for batch, seqlen in ((1, 131072), (64, 2048)):
            yield Decode("Llama-3 8B", "bfloat16", batch, *LLAMA, seqlen, 128, page)
    yield Decode("GPT-2", "bfloat16", 64, 12, 12, 1024, 64)


def _cpu() -> Iterator[Decode]:
    for dtype in ("float32", "bfloat16"):
        yield Decode("GPT-2", dtype, 1, 12, 12, 1024, 64, latency=True)
        yield Decode("Llama-3 8B", dtype, 1, *LLAMA, 8192, 128)
        yield Decode("Llama-3 8B", dtype, 8, *LLAMA, 1024, 128)
        yield Decode("Llama-3 8B", dtype, 8, *LLAMA, 1024, 128, 64)


def _cpu_long() -> Iterator[Decode]:
    yield from _cpu()
    for dtype in ("float32", "bfloat16"):
        yield Decode("Llama-3 8B", dtype, 1, *LLAMA, 65536, 128)
        yield Decode("Llama-3 8B", dtype, 32, *LLAMA, 1024, 128)
        yield Decode("Llama-3 8B", dtype, 1, *LLAMA, 65536, 128, 16)


def _tiny() -> Iterator[Decode]:
    yield Decode("tiny", "bfloat16", 2, 4, 2, 64, 16)
    yield Decode("tiny", "float32", 2, 4, 2, 60, 16, 16)
    yield Decode("tiny", "bfloat16", 1, 4, 2, 32, 16, latency=True)


SETS = {
    "gpu-first": _gpu_first,
    "gpu": _gpu,
    "gpu-long": _gpu_long,
    "cpu": _cpu,
    "cpu-long": _cpu_long,
    "tiny": _tiny,
}
