"""How time and memory grow: the same call at sizes that double, in one curve each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

from ..measure import Bench, Built, Item, refusing
from ..shapes import Attention, Decode, Ffn, Softmax
from . import attention, decode, ffn, softmax

#: The peers that compile for every size.
COMPILED = ("compile", "flex")

#: By the set of shapes: sequence lengths, cached keys, widths, rows.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "gpu-first": ((), (), (), ()),
    "gpu": ((), (), (), ()),
    "gpu-long": (
        tuple(2**i for i in range(9, 16)),
        tuple(2**i for i in range(10, 19)),
        tuple(2**i for i in range(8, 19)),
        tuple(2**i for i in range(16)),
    ),
    "cpu": ((128, 256, 512, 1024, 2048), (1024, 4096, 16384), (256, 2048, 16384, 131072), (1, 8, 64, 256)),
    "cpu-long": (
        tuple(2**i for i in range(7, 14)),
        tuple(2**i for i in range(10, 18)),
        tuple(2**i for i in range(6, 19)),
        tuple(2**i for i in range(12)),
    ),
    "tiny": ((8, 16, 32), (), (), ()),
}


def items(shapes: str) -> Iterator[Item]:
    for found in _items(shapes):
        yield dataclasses.replace(found, build=functools.partial(_build, found.build))


def _build(build: Callable[[Bench], Built], bench: Bench) -> Built:
    """In the short set of a CPU nobody compiles: it would take longer for each size than all its calls."""
    built = build(bench)
    if bench.shapes != "cpu":
        return built
    left_out = refusing("it compiles for each size, which only cpu-long has the time for")
    return Built({n: left_out if n in COMPILED else p for n, p in built.providers.items()}, built.error)


def _items(shapes: str) -> Iterator[Item]:
    dtype = "bfloat16" if shapes.startswith("gpu") else "float32"
    heads = 16 if shapes.startswith("gpu") else 4
    seqlens, cached, widths, rows = SIZES[shapes]
    for s in seqlens:
        yield attention.item("forward", Attention("growth", dtype, 1, heads, heads, s, 64, True), "sequence length")
    for s in cached:
        yield decode.item(Decode("growth", dtype, 1, 32, 8, s, 128, latency=True), "cached keys")
    for width in widths:
        yield softmax.item("forward", Softmax("growth", dtype, 16, width), "width")
    for m in rows:
        yield ffn.item("forward", Ffn("growth", dtype, m, *ffn.GPT2), "rows")
