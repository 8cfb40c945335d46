"""Attention over dense batches: GPT-2's, Llama's, BERT's padded ones, windows, long sequences and odd sizes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...ops.attention import attention
from .. import exact
from ..measure import Bench, Built, Item, providers_of
from ..peers.attention import PEERS, keep_mask
from ..shapes import SWEEP, Attention
from .lengths import padded

#: How many times the forward's products a mode has (Dao et al. 2022).
WORK = {"forward": 1.0, "backward": 2.5, "both": 3.5}


def item(mode: str, shape: Attention, curve: str = "") -> Item:
    facts = {"op": "attention", "mode": mode, "label": shape.label, **shape.facts()}
    facts.pop("lengths", None)
    if curve:
        facts.update(curve=curve, size=shape.seqlen)
    name = f"attention {mode} {shape.name}" + (f" ({curve})" if curve else "")
    return Item(
        name, "TFLOP/s", functools.partial(_build, mode=mode, shape=shape), shape.flops * WORK[mode], facts=facts
    )


def items(shapes: str) -> Iterator[Item]:
    for mode, shape in SETS[shapes]():
        yield item(mode, shape)


def _build(bench: Bench, mode: str, shape: Attention) -> Built:
    sizes = (shape.seqlen, shape.head_dim)
    q, dout = (bench.normal(shape.batch, shape.heads, *sizes, dtype=shape.dtype) for _ in range(2))
    k, v = (bench.normal(shape.batch, shape.heads_kv, *sizes, dtype=shape.dtype) for _ in range(2))
    # The first and the last key head, with the query heads of each.
    sample = [(0, 0), (shape.batch - 1, shape.heads_kv - 1)]
    group = shape.heads // shape.heads_kv

    def keep(b: int) -> exact.Keep | None:
        if not shape.causal and shape.window is None and shape.lengths is None:
            return None

        def pairs(i: Tensor, j: Tensor) -> Tensor:
            found = (j <= i) if shape.causal else torch.ones_like(j <= i)
            if shape.window is not None:
                found = found & (j >= i - shape.window)
            return found & (j < shape.lengths[b]) if shape.lengths is not None else found

        return pairs

    @functools.cache
    def expected() -> list[Tensor]:
        found: list[Tensor] = []
        for b, h in sample:
            heads = slice(h * group, (h + 1) * group)
            upstream = None if mode == "forward" else dout[b, heads]
            found += exact.attention(q[b, heads], k[b, h], v[b, h], upstream, keep(b))
        return found

    def error(result: Any) -> float:
        tensors = result if isinstance(result, tuple) else (result,)
        parts = []
        for b, h in sample:
            heads = (slice(h * group, (h + 1) * group), h, h)
            parts += [t[b, index] for t, index in zip(tensors, heads, strict=False)]
        return exact.distance(parts, expected())

    options: dict[str, Any] = {"causal": "top_left" if shape.causal else None}
    if shape.window is not None:
        options["window"] = (shape.window, None)
    if shape.lengths is not None:  # as a model has it: a mask of keys
        options["mask"] = keep_mask(Attention(**{**vars(shape), "causal": False, "window": None}), bench.device)
    ours = bench.ours(attention, **options)
    return Built(providers_of(bench, shape, mode, ours, PEERS, (q, k, v), dout), error)


Calls = Iterator[tuple[str, Attention]]


def _gpu_first() -> Calls:
    """Each head dim, length, mode and mask at least twice."""
    for mode, head_dim, causal, seqlen in (
        ("forward", 128, True, 4096),
        ("backward", 128, True, 4096),
        ("forward", 128, False, 16384),
        ("backward", 128, False, 16384),
        ("forward", 64, False, 4096),
        ("backward", 64, True, 1024),
        ("forward", 256, True, 16384),
        ("backward", 256, False, 4096),
        ("forward", 128, True, 1024),
    ):
        heads = 2048 // head_dim
        yield mode, Attention(SWEEP, "bfloat16", 16384 // seqlen, heads, heads, seqlen, head_dim, causal)


def _of_16k_tokens(sizes: list[tuple[int, int, int, int]]) -> Calls:
    """(head_dim, heads, heads_kv, seqlen), each forward and backward, full and causal; FlashAttention's own sizes."""
    for head_dim, heads, heads_kv, seqlen in sizes:
        for causal in (False, True):
            for mode in ("forward", "backward"):
                yield mode, Attention(SWEEP, "bfloat16", 16384 // seqlen, heads, heads_kv, seqlen, head_dim, causal)


def _gpu() -> Calls:
    """The first ones are those that targets are set for."""
    yield from _of_16k_tokens(
        [
            *((128, 16, 16, s) for s in (4096, 16384, 1024)),
            (128, 32, 8, 4096),
            (64, 32, 32, 4096),
            (256, 8, 8, 4096),
            *((128, 32, 8, s) for s in (1024, 16384)),
            *((d, 2048 // d, 2048 // d, s) for d in (64, 256) for s in (16384, 1024)),
        ]
    )


def _gpu_long() -> Calls:
    yield from _gpu()
    for mode in ("forward", "backward"):
        for dtype in ("bfloat16", "float16"):
            for seqlen in (128, 256, 512, 1024):
                yield mode, Attention("GPT-2", dtype, 16, 12, 12, seqlen, 64, True)
        yield mode, Attention("GPT-2", "float32", 16, 12, 12, 1024, 64, True)
        for seqlen in (2048, 8192):
            yield mode, Attention("Llama-3 8B", "bfloat16", 8192 // seqlen, 32, 8, seqlen, 128, True)
            yield mode, Attention("Llama-3 70B", "bfloat16", 8192 // seqlen, 64, 8, seqlen, 128, True)
        for lengths in (padded(32, 512), padded(128, 512)):
            yield mode, Attention("BERT", "bfloat16", len(lengths), 12, 12, 512, 64, lengths=lengths)
        for window in (128, 1024, 4096):
            yield mode, Attention("Mistral", "bfloat16", 1, 32, 8, 16384, 128, True, window)
        yield mode, Attention("long", "bfloat16", 1, 16, 16, 32768, 128, True)
        for head_dim, seqlen in ((50, 333), (80, 1023), (96, 2047), (192, 1000)):
            yield mode, Attention("odd", "bfloat16", 4, 12, 12, seqlen, head_dim, True)


def _cpu() -> Calls:
    lengths = padded(8, 128)
    for dtype in ("float32", "bfloat16"):
        for mode in ("forward", "both"):
            yield mode, Attention("GPT-2", dtype, 1, 12, 12, 512, 64, True)
            yield mode, Attention("BERT", dtype, len(lengths), 12, 12, 128, 64, lengths=lengths)
        yield "forward", Attention("GPT-2", dtype, 4, 12, 12, 128, 64, True)
        yield "forward", Attention("Llama-3 8B", dtype, 1, 32, 8, 512, 128, True)
        yield "forward", Attention("Mistral", dtype, 1, 8, 2, 2048, 128, True, 256)
        yield "forward", Attention("odd", dtype, 2, 3, 3, 333, 50, True)
    yield "both", Attention("Llama-3 8B", "float32", 1, 8, 2, 512, 128, True)
    yield "both", Attention("odd", "float32", 2, 3, 3, 333, 50, True)


def _cpu_long() -> Calls:
    yield from _cpu()
    for dtype in ("float32", "bfloat16"):
        for mode in ("forward", "both"):
            yield mode, Attention("GPT-2", dtype, 8, 12, 12, 1024, 64, True)
            yield mode, Attention("Llama-3 8B", dtype, 1, 32, 8, 2048, 128, True)
        yield "forward", Attention("Llama-3 70B", dtype, 1, 64, 8, 1024, 128, True)
        yield "forward", Attention("long", dtype, 1, 2, 2, 16384, 64, True)
        yield "forward", Attention("long", dtype, 1, 1, 1, 32768, 64, True)


def _tiny() -> Calls:
    for mode in ("forward", "backward", "both"):
        yield mode, Attention(SWEEP, "float32", 1, 4, 2, 32, 16, True)
    yield "forward", Attention(SWEEP, "bfloat16", 2, 2, 2, 32, 16)
    yield "both", Attention(SWEEP, "float32", 2, 2, 2, 24, 16, True, 5)
    yield "both", Attention(SWEEP, "float32", 2, 2, 2, 24, 16, lengths=(24, 7))


SETS = {
    "gpu-first": _gpu_first,
    "gpu": _gpu,
    "gpu-long": _gpu_long,
    "cpu": _cpu,
    "cpu-long": _cpu_long,
    "tiny": _tiny,
}
