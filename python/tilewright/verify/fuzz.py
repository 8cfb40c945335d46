"""Random cases: one seed makes one case, so that a failing one is reproduced by its seed alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..catalog import OPS
from ..ops.ffn import ACTIVATIONS
from .case import DTYPES, Case
from .cases import attention, ffn, kvcache_attention, softmax, varlen_attention


def fuzz_case(
    seed: int, ops: Sequence[str] = tuple(OPS), dtypes: Sequence[torch.dtype] = tuple(DTYPES.values())
) -> Case:
    """The random case of this seed among these ops and dtypes. Its inputs are to be drawn from the same seed."""
    rng = random.Random(seed)
    op, dtype = rng.choice(list(ops)), rng.choice(list(dtypes))
    return random_case(rng, op, f"fuzz_{seed}", dtype)


def random_case(rng: random.Random, op: str, name: str, dtype: torch.dtype) -> Case:
    """A case of this op and dtype whose shapes, strides and features ``rng`` chooses."""
    return _MAKERS[op](rng, name, dtype)


def _size(rng: random.Random, most: int) -> int:
    """Mostly small, often 1 or around a power of two."""
    kind = rng.random()
    if kind < 0.1:
        return 1
    if kind < 0.4:
        power: int = 1 << rng.randrange(1, most.bit_length())
        return max(1, min(most, power + rng.choice((-1, 0, 1))))
    return rng.randint(1, most)


def _maybe(rng: random.Random, spec: dict[str, Any], name: str, probability: float, choose: Callable[[], Any]) -> None:
    if rng.random() < probability:
        spec[name] = choose()


def _heads(rng: random.Random, spec: dict[str, Any]) -> None:
    spec["heads_kv"] = rng.choice((1, 1, 2, 3))
    spec["heads"] = spec["heads_kv"] * rng.choice((1, 1, 2, 3))
    spec["head_dim"] = _size(rng, 256 if rng.random() < 0.2 else 80)
    _maybe(rng, spec, "head_dim_v", 0.2, lambda: _size(rng, 80))


def _features(rng: random.Random, spec: dict[str, Any], dims: str) -> None:
    def mask() -> str:
        kept = "".join(d if rng.random() < 0.6 else "1" for d in dims)
        special = rng.choice(("", "", "", " inf", " rows", " min", " transposed"))
        kind = rng.choice(("bool", "float", "float32"))
        return f"{kind} {kept}{'' if kind == 'bool' and special in (' inf', ' min') else special}"

    _maybe(rng, spec, "mask", 0.35, mask)
    _maybe(rng, spec, "causal", 0.5, lambda: rng.choice(("top_left", "bottom_right")))
    _maybe(rng, spec, "window", 0.3, lambda: tuple(rng.choice((None, 0, _size(rng, 60))) for _ in range(2)))
    _maybe(rng, spec, "softcap", 0.2, lambda: rng.choice((0.5, 5.0, 30.0)))
    _maybe(rng, spec, "alibi", 0.2, lambda: rng.choice(("h", "bh")))
    _maybe(rng, spec, "sinks", 0.2, lambda: rng.choice(("same", "float32")))
    _maybe(rng, spec, "scale", 0.1, lambda: rng.choice((0.0, 0.3, -0.1)))
    kind, kept, *_ = spec.get("mask", "bool k").split()
    # Where a gradient would be zero by definition (of such a mask; of q and k when each query sees one key), a sink
    # gives it a magnitude to compare with.
    if kind != "bool" and kept.endswith("1"):
        spec["sinks"] = "same"
    left, right = spec.get("window", (None, None))
    itself = left == 0 and (right == 0 or "causal" in spec)
    if itself or 1 in (spec.get("seqlen_q"), spec.get("seqlen_k")):
        spec.setdefault("sinks", "same")


def _attention(rng: random.Random, name: str, dtype: torch.dtype) -> Case:
    spec: dict[str, Any] = {"batch": rng.choice((1, 1, 2, 3)), "seqlen_q": _size(rng, 130)}
    _maybe(rng, spec, "seqlen_k", 0.5, lambda: _size(rng, 200))
    _heads(rng, spec)
    _features(rng, spec, "bhqk")
    _maybe(rng, spec, "dropout_p", 0.15, lambda: rng.choice((0.1, 0.5)))
    _maybe(rng, spec, "lse", 0.3, lambda: rng.choice(("value", "gradient")))
    _maybe(rng, spec, "layout", 0.2, lambda: "bshd")
    _maybe(rng, spec, "upstream", 0.2, lambda: rng.choice(("expanded", "rows", "transposed")))
    square = "seqlen_k" not in spec and "head_dim_v" not in spec
    _maybe(
        rng,
        spec,
        "memory",
        0.4,
        lambda: rng.choice(attention.MEMORIES if square else attention.MEMORIES[:2] + attention.MEMORIES[3:]),
    )
    return attention.case(name, dtype, **spec)


def _varlen(rng: random.Random, name: str, dtype: torch.dtype) -> Case:
    count = rng.randint(1, 5)
    lengths = [rng.choice((0, 1, _size(rng, 100))) for _ in range(count)]
    spec: dict[str, Any] = {"lengths_q": lengths}
    _maybe(rng, spec, "lengths_k", 0.5, lambda: [rng.choice((0, 1, _size(rng, 150))) for _ in range(count)])
    _heads(rng, spec)
    _features(rng, spec, "bhqk")
    _maybe(rng, spec, "dropout_p", 0.15, lambda: rng.choice((0.1, 0.5)))
    _maybe(rng, spec, "lse", 0.3, lambda: rng.choice(("value", "gradient")))
    _maybe(rng, spec, "slack", 0.2, lambda: rng.randint(1, 40))
    square = "head_dim_v" not in spec
    _maybe(
        rng,
        spec,
        "memory",
        0.4,
        lambda: rng.choice(
            ("heads_first", "misaligned", "fused") if square and "lengths_k" not in spec else ("heads_first",)
        ),
    )
    return varlen_attention.case(name, dtype, **spec)


def _kvcache(rng: random.Random, name: str, dtype: torch.dtype) -> Case:
    spec: dict[str, Any] = {"lengths": [rng.choice((0, 1, _size(rng, 300))) for _ in range(rng.randint(1, 4))]}
    spec["seqlen_q"] = rng.choice((1, 1, 1, 2, _size(rng, 40)))
    _heads(rng, spec)
    _features(rng, spec, "bhqk")
    _maybe(rng, spec, "new", 0.5, lambda: rng.choice((1, spec["seqlen_q"])))
    _maybe(rng, spec, "page_size", 0.5, lambda: rng.choice((1, 3, 16, 64)))
    _maybe(rng, spec, "num_splits", 0.5, lambda: rng.randint(0, 9))
    _maybe(rng, spec, "lse", 0.3, lambda: "value")
    _maybe(rng, spec, "layout", 0.2, lambda: "bshd")
    _maybe(rng, spec, "memory", 0.3, lambda: rng.choice(("bshd", "padded", "misaligned")))
    return kvcache_attention.case(name, dtype, **spec)


def _softmax(op: str) -> Callable[[random.Random, str, torch.dtype], Case]:
    def make(rng: random.Random, name: str, dtype: torch.dtype) -> Case:
        rank = rng.randint(1, 4)
        shape = [_size(rng, 12) for _ in range(rank)]
        dim = rng.choice((rank - 1, rng.randrange(rank)))
        shape[dim] = _size(rng, rng.choice((20, 200, 3000)))
        spec: dict[str, Any] = {"shape": tuple(shape), "dim": dim}
        _maybe(rng, spec, "scale", 0.3, lambda: rng.choice((0.125, -1.5, 3.0)))
        if rank >= 2:
            dims = "".join(rng.choice("x1") for _ in range(rank))
            kind = rng.choice(("bool", "float", "float32"))
            special = rng.choice(("", "", " rows") if kind == "bool" else ("", "", " inf", " rows", " min"))
            if special == " min" and op == "log_softmax" and dtype.itemsize == 2:
                special = ""  # the logarithm is about finfo.min, which may round to -inf: an excluded element
            _maybe(rng, spec, "mask", 0.4, lambda: f"{kind} {dims}{special}")
        if rank >= 2 and dim == rank - 1:
            _maybe(rng, spec, "causal", 0.3, lambda: rng.choice(("top_left", "bottom_right")))
        order = list(range(rank))
        rng.shuffle(order)
        _maybe(rng, spec, "memory", 0.4, lambda: rng.choice(({"order": order}, {"pad": 3}, {"offset": 1})))
        if spec.get("scale", 1.0) > 0.0:  # a negative scale makes +inf of -inf, which no softmax takes
            _maybe(rng, spec, "values", 0.15, lambda: rng.choice(("large", "inf")))
        # One row for all is one number along any other dimension, whose gradient is zero by definition.
        _maybe(
            rng,
            spec,
            "upstream",
            0.2,
            lambda: rng.choice(("rows", "transposed") if dim == rank - 1 else ("transposed",)),
        )
        return softmax.case(op, name, dtype, **spec)

    return make


def _ffn(rng: random.Random, name: str, dtype: torch.dtype) -> Case:
    spec: dict[str, Any] = {
        "activation": rng.choice(ACTIVATIONS),
        "rows": rng.choice((_size(rng, 70), (_size(rng, 5), _size(rng, 9)))),
        "features": _size(rng, 100),
        "hidden": _size(rng, 150),
    }
    _maybe(rng, spec, "out_features", 0.3, lambda: _size(rng, 100))
    for option in ("biases", "residual", "recompute", "transposed_weights"):
        _maybe(rng, spec, option, 0.4, lambda: True)
    _maybe(rng, spec, "dropout_p", 0.2, lambda: rng.choice((0.1, 0.5)))
    _maybe(rng, spec, "memory", 0.2, lambda: rng.choice(({"pad": 3}, {"offset": 1})))
    _maybe(rng, spec, "upstream", 0.2, lambda: rng.choice(("expanded", "rows", "transposed")))
    return ffn.case(name, dtype, **spec)


_MAKERS: dict[str, Callable[[random.Random, str, torch.dtype], Case]] = {
    "attention": _attention,
    "varlen_attention": _varlen,
    "kvcache_attention": _kvcache,
    "softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "ffn": _ffn,
}
