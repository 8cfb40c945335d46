"""Cases of varlen_attention."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from ..case import Case, Maker
from .attention import FEATURES, add_features, draw_values, gradients_of, sizes_of

_LENGTHS = [37, 0, 5, 64]
_KEY_LENGTHS = [50, 7, 0, 64]


def make(m: Maker, *, spec: dict[str, Any]) -> dict[str, Any]:
    lengths_q = spec.get("lengths_q", _LENGTHS)
    lengths_k = spec.get("lengths_k", lengths_q)
    _, heads, heads_kv, _, _, head_dim, head_dim_v = sizes_of(spec)
    total_q, total_k = sum(lengths_q), sum(lengths_k)
    # (H, total, D), so that "equal" and "large" mean what they mean for dense attention.
    drawn = draw_values(
        m,
        spec.get("values", "normal"),
        (heads, total_q, head_dim),
        (heads_kv, total_k, head_dim),
        (heads_kv, total_k, head_dim_v),
    )
    packed = [t.transpose(0, 1) for t in drawn]
    memory = spec.get("memory", "packed")
    if memory == "fused":
        q, k, v = m.place(torch.cat(packed, 1)).tensor_split((heads, heads + heads_kv), 1)
    elif memory == "heads_first":
        q, k, v = (m.place(t, order=(1, 0, 2)) for t in packed)
    else:
        q, k, v = (m.place(t, offset=1 if memory == "misaligned" else 0) for t in packed)
    slack = spec.get("slack", 0)
    longest_q, longest_k = max(lengths_q, default=0) + slack, max(lengths_k, default=0) + slack
    arguments: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "cu_seqlens_q": m.int32([0, *itertools.accumulate(lengths_q)]),
        "cu_seqlens_k": m.int32([0, *itertools.accumulate(lengths_k)]),
        "max_seqlen_q": longest_q,
        "max_seqlen_k": longest_k,
    }
    add_features(m, arguments, spec, (len(lengths_q), heads, longest_q, longest_k))
    return arguments


def case(name: str, dtype: torch.dtype, **spec: Any) -> Case:
    return Case(
        op="varlen_attention",
        name=name,
        dtype=dtype,
        make=functools.partial(make, spec=spec),
        gradients=gradients_of(spec),
        output_gradients=("out", "lse") if spec.get("lse") == "gradient" else (),
        upstream=spec.get("upstream", "dense"),
        bitwise=spec.get("deterministic", False),
        spec=spec,
    )


def _specs() -> Iterator[tuple[str, dict[str, Any]]]:
    cross = {"lengths_k": _KEY_LENGTHS}
    yield "plain", {}
    yield "cross", {**cross, "lse": "value"}
    yield "one_sequence", {"lengths_q": [70]}
    yield "ones", {"lengths_q": [1] * 9, "causal": "bottom_right", "sinks": "same"}
    yield "decode", {"lengths_q": [1, 1, 1], "lengths_k": [100, 3, 65], "causal": "bottom_right"}
    few = {"lengths_q": [1, 3, 2], "lengths_k": [40, 9, 30], "head_dim": 93}
    yield "few_keys_seen", {**few, "causal": "top_left", "lse": "value"}
    yield "slack", {"slack": 20, "mask": "float b1qk"}
    for name, feature in FEATURES.items():
        yield name, {**feature, **cross}
    for mask in (
        "bool bhqk",
        "bool b11k",
        "bool 11qk rows",
        "float bhqk",
        "float 1hqk",
        "float b11k",
        "float32 1hqk inf",
    ):
        yield "mask_" + mask.replace(" ", "_"), {"mask": mask, **cross}
    yield "dropout", {"dropout_p": 0.3, **cross}
    yield "dropout_everything", {**FEATURES["everything"], "dropout_p": 0.1}
    small = {"heads": 2, "heads_kv": 1, "head_dim": 16, "window": (4, 0)}
    lengths = {"lengths_q": [3, 0, 7], "lengths_k": [6, 2, 9]}
    yield "small_everything", {**FEATURES["everything"], **small, **lengths, "dropout_p": 0.3, "lse": "gradient"}
    one = {"lengths_q": [7], "lengths_k": [9], "heads": 1}
    for mask in ("bool bhqk rows", "float32 bhqk inf"):
        yield f"small_{mask.split()[-1]}", {**small, **one, "mask": mask, "sinks": "same"}
    for d, dv in ((1, 1), (3, 3), (50, 50), (64, 64), (80, 48), (128, 128), (256, 256)):
        yield f"head_dim_{d}_{dv}", {"head_dim": d, "head_dim_v": dv, "causal": "bottom_right", "lengths_q": [20, 33]}
    for memory in ("fused", "heads_first", "misaligned"):
        yield f"memory_{memory}", {"memory": memory, "causal": "top_left"}
    yield "lse_gradient", {"lse": "gradient", **cross}
    yield "lse_gradient_sinks", {"lse": "gradient", "sinks": "same", **cross}
    yield "large_logits", {"values": "large", "scale": 1.0, "head_dim": 16}
    for upstream in ("expanded", "rows", "transposed"):
        yield f"upstream_{upstream}", {"upstream": upstream}
    for gradients in (["q"], ["k"], ["v"], ["mask"], ["sinks"]):
        yield f"gradient_of_{gradients[0]}", {"mask": "float 1hqk", "sinks": "same", "gradients": gradients}
    yield "no_gradient", {"gradients": []}
    yield "deterministic", {"deterministic": True, "heads_kv": 1}
    yield "empty_batch", {"lengths_q": []}
    yield "empty_sequences", {"lengths_q": [0, 0, 0], "lse": "value"}
    yield "empty_keys", {"lengths_q": [3, 4], "lengths_k": [0, 0], "lse": "value", "sinks": "same"}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, spec in _specs():
        yield case(name, dtype, **spec)
