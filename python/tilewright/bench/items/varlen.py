"""Attention over packed sequences of the lengths of real texts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

from ...ops.varlen_attention import varlen_attention
from .. import exact
from ..measure import Bench, Built, Item, providers_of
from ..peers.varlen import PEERS, cu_seqlens
from ..shapes import Varlen
from .attention import WORK
from .lengths import packed


def item(mode: str, shape: Varlen) -> Item:
    facts = {"op": "varlen_attention", "mode": mode, "label": shape.label, **shape.facts()}
    name = f"varlen_attention {mode} {shape.name}"
    return Item(
        name, "TFLOP/s", functools.partial(_build, mode=mode, shape=shape), shape.flops * WORK[mode], facts=facts
    )


def items(shapes: str) -> Iterator[Item]:
    for mode, shape in SETS[shapes]():
        yield item(mode, shape)


def _build(bench: Bench, mode: str, shape: Varlen) -> Built:
    total, group = sum(shape.lengths), shape.heads // shape.heads_kv
    q, dout = (bench.normal(total, shape.heads, shape.head_dim, dtype=shape.dtype) for _ in range(2))
    k, v = (bench.normal(total, shape.heads_kv, shape.head_dim, dtype=shape.dtype) for _ in range(2))
    bounds = [0, *itertools.accumulate(shape.lengths)]
    # The first, the longest and the last sequence, with the first or the last key head.
    longest = max(range(len(shape.lengths)), key=lambda b: shape.lengths[b])
    sample = sorted({(0, 0), (longest, 0), (len(shape.lengths) - 1, shape.heads_kv - 1)})

    @functools.cache
    def expected() -> list[Any]:
        found = []
        for b, h in sample:
            rows, heads = slice(bounds[b], bounds[b + 1]), slice(h * group, (h + 1) * group)
            upstream = None if mode == "forward" else dout[rows, heads].transpose(0, 1)
            causal: exact.Keep | None = (lambda i, j: j <= i) if shape.causal else None
            found += exact.attention(q[rows, heads].transpose(0, 1), k[rows, h], v[rows, h], upstream, causal)
        return found

    def error(result: Any) -> float:
        tensors = result if isinstance(result, tuple) else (result,)
        parts = []
        for b, h in sample:
            rows = slice(bounds[b], bounds[b + 1])
            parts.append(tensors[0][rows, h * group : (h + 1) * group].transpose(0, 1))
            parts += [t[rows, h] for t in tensors[1:]]
        return exact.distance(parts, expected())

    table, longest_text = cu_seqlens(shape, bench.device), max(shape.lengths)
    options = {"cu_seqlens_q": table, "cu_seqlens_k": table, "causal": "top_left" if shape.causal else None}
    ours = bench.ours(varlen_attention, **options, max_seqlen_q=longest_text, max_seqlen_k=longest_text)
    return Built(providers_of(bench, shape, mode, ours, PEERS, (q, k, v), dout), error)


Calls = Iterator[tuple[str, Varlen]]


def _gpu() -> Calls:
    for mode in ("forward", "backward"):
        yield mode, Varlen("documents", "bfloat16", packed(16384, 4096), 16, 16, 128, True)


def _gpu_long() -> Calls:
    yield from _gpu()
    for mode in ("forward", "backward"):
        yield mode, Varlen("documents", "bfloat16", packed(65536, 8192), 32, 8, 128, True)
        yield mode, Varlen("documents", "bfloat16", packed(16384, 2048), 12, 12, 64, False)


def _cpu() -> Calls:
    for dtype in ("float32", "bfloat16"):
        yield "forward", Varlen("documents", dtype, packed(2048, 1024), 12, 12, 64, True)
    yield "both", Varlen("documents", "float32", packed(1024, 512), 12, 12, 64, True)


def _cpu_long() -> Calls:
    yield from _cpu()
    for dtype in ("float32", "bfloat16"):
        yield "both", Varlen("documents", dtype, packed(8192, 4096), 12, 12, 64, True)


def _tiny() -> Calls:
    yield "both", Varlen("tiny", "float32", (5, 1, 20), 4, 2, 16, True)


SETS = {
    "gpu-first": lambda: iter(()),
    "gpu": _gpu,
    "gpu-long": _gpu_long,
    "cpu": _cpu,
    "cpu-long": _cpu_long,
    "tiny": _tiny,
}
