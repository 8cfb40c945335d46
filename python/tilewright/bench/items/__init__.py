"""Every item of a benchmark, the most wanted first: what time does not allow is missing from the end."""

from __future__ import annotations

from ..measure import Item
from . import attention, decode, end_to_end, ffn, growth, overhead, own, rooflines, softmax, varlen

#: Sets of shapes: the few calls that tell most about a GPU, in a minute; for a GPU and for a CPU, in minutes, and with
#: every shape; "tiny" only shows that all of it runs.
SETS = ("gpu-first", "gpu", "gpu-long", "cpu", "cpu-long", "tiny")

OPS = {
    "attention": attention.items,
    "varlen_attention": varlen.items,
    "kvcache_attention": decode.items,
    "softmax": softmax.items,
    "ffn": ffn.items,
    "growth": growth.items,
    "overhead": overhead.items,
    "end_to_end": end_to_end.items,
}


def all_items(shapes: str, ops: tuple[str, ...] = tuple(OPS), calls: tuple[str, ...] = ()) -> list[Item]:
    """Of these ops, the rooflines before everything else; after them ``calls`` of one's own (own.parse)."""
    mine = list({i.name: i for text in calls for i in own.parse(text)}.values())
    found = {"own": mine, **{op: list(OPS[op](shapes)) for op in ops}}
    if shapes == "gpu":  # those that targets are set for come first
        aimed = {"attention": 8, "softmax": len(softmax.WIDTHS), "ffn": 2, "kvcache_attention": None, "overhead": None}
        first = [i for op, count in aimed.items() for i in found.get(op, [])[:count]]
        names = {i.name for i in first}
        return [*rooflines.items(shapes), *first, *(i for of in found.values() for i in of if i.name not in names)]
    return [*rooflines.items(shapes), *(i for of in found.values() for i in of)]
