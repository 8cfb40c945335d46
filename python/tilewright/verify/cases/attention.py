"""Cases of attention, and the pieces that the other attention ops' cases share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Maker

MEMORIES = ("bhsd", "bshd", "fused", "padded", "misaligned", "strided")


def place_heads(m: Maker, values: Tensor, memory: str) -> Tensor:
    """(B, H, S, D) values in memory as models hold them."""
    if memory == "bshd":
        return m.place(values, order=(0, 2, 1, 3))
    if memory == "padded":
        return m.place(values, pad=3)
    if memory == "misaligned":
        return m.place(values, offset=1)
    if memory == "strided":  # the last dimension is not the innermost: the op has to copy
        return m.place(values, order=(0, 1, 3, 2))
    return m.place(values)


def place_qkv(m: Maker, values: list[Tensor], memory: str) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = values
    if memory != "fused":
        return place_heads(m, q, memory), place_heads(m, k, memory), place_heads(m, v, memory)
    # One projection's output (B, S, (H + 2 Hkv) D), as GPT-2 and Llama make it; needs one S and one D.
    fused = m.place(torch.cat([t.transpose(1, 2).flatten(2) for t in (q, k, v)], -1))
    heads, heads_kv, head_dim = q.shape[1], k.shape[1], q.shape[3]
    by_head = fused.view(*fused.shape[:2], -1, head_dim).transpose(1, 2)
    return by_head[:, :heads], by_head[:, heads : heads + heads_kv], by_head[:, heads + heads_kv :]


def draw_values(
    m: Maker, values: str, q_shape: tuple[int, ...], k_shape: tuple[int, ...], v_shape: tuple[int, ...]
) -> list[Tensor]:
    """Numbers for q, k and v.

    "large": whole numbers whose scores are exact and reach 1e4 either way (with scale 1 and a head dim of 16); "equal":
    all keys are the same; "normal".
    """
    if values == "large":
        return [m.draw_integers(-25, 25, *q_shape), m.draw_integers(-25, 25, *k_shape), m.draw_normal(*v_shape)]
    q, k, v = m.draw_normal(*q_shape), m.draw_normal(*k_shape), m.draw_normal(*v_shape)
    if values == "equal":
        k = k[..., :1, :].repeat_interleave(k_shape[-2], -2)
    return [q, k, v]


def make_mask(m: Maker, spec: str, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """A mask from words: its kind, which dimensions it has ("1" is broadcast), and how it is special.

    kinds: "bool", "float" (the case's dtype), "float32". Dimensions such as "bhqk", "1h1k", or "qk" for a rank of 2.
    special: "rows" excludes every third row entirely, "inf" excludes single pairs by -inf, "min" fills every third row
    with finfo.min, which excludes nothing, "expanded" views a smaller mask at full size, "transposed" has keys outside.
    """
    kind, dims, *special = spec.split()
    full = dict(zip("bhqk", sizes, strict=True))
    shape = [full.get(d, 1) for d in dims]
    if kind == "bool":
        mask = m.draw_bool(0.7, *shape)
    else:
        mask = m.draw_normal(*shape).to(torch.float32 if kind == "float32" else dtype)
    if "inf" in special:
        mask = mask.masked_fill(m.draw_bool(0.3, *shape), -torch.inf)
    rows = mask[..., ::3, :]
    if "rows" in special:
        rows.fill_(False if kind == "bool" else -torch.inf)
    if "min" in special:
        rows.fill_(torch.finfo(mask.dtype).min)
    if "transposed" in special:
        return m.place(mask, order=(*range(mask.dim() - 2), mask.dim() - 1, mask.dim() - 2))
    mask = m.place(mask)
    return mask.expand(sizes) if "expanded" in special else mask


def add_features(m: Maker, arguments: dict[str, Any], spec: dict[str, Any], sizes: tuple[int, int, int, int]) -> None:
    """Mask, ALiBi, sinks and the plain options, into ``arguments``. sizes: (B, H, Sq, Sk) as a mask sees them."""
    batch, heads = sizes[:2]
    if "mask" in spec:
        arguments["mask"] = make_mask(m, spec["mask"], sizes, m.dtype)
    if "alibi" in spec:
        shape = (heads,) if spec["alibi"] == "h" else (batch, heads)
        # ALiBi's own slopes, 2^-1, 2^-2, ... over the heads; each batch entry its own multiple.
        slopes = (0.5 ** torch.arange(1, heads + 1, dtype=torch.float32, device="cpu")).expand(shape)
        if len(shape) == 2:
            slopes = slopes * torch.arange(1, batch + 1, device="cpu").unsqueeze(1)
        arguments["alibi_slopes"] = m.place(slopes)
    if "sinks" in spec:
        arguments["sinks"] = m.place(m.draw_normal(heads).to(torch.float32 if spec["sinks"] == "float32" else m.dtype))
    for name in ("causal", "window", "softcap", "scale", "dropout_p", "layout", "deterministic"):
        if name in spec:
            arguments[name] = spec[name]
    if spec.get("lse"):
        arguments["return_lse"] = True


def make(m: Maker, *, spec: dict[str, Any]) -> dict[str, Any]:
    batch, heads, heads_kv, seqlen_q, seqlen_k, head_dim, head_dim_v = sizes_of(spec)
    q, k, v = place_qkv(
        m,
        draw_values(
            m,
            spec.get("values", "normal"),
            (batch, heads, seqlen_q, head_dim),
            (batch, heads_kv, seqlen_k, head_dim),
            (batch, heads_kv, seqlen_k, head_dim_v),
        ),
        spec.get("memory", "bhsd"),
    )
    if spec.get("layout") == "bshd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v}
    add_features(m, arguments, spec, (batch, heads, seqlen_q, seqlen_k))
    return arguments


def sizes_of(spec: dict[str, Any]) -> tuple[int, int, int, int, int, int, int]:
    """batch, heads, heads_kv, seqlen_q, seqlen_k, head_dim, head_dim_v of a spec, with their defaults."""
    heads, seqlen_q, head_dim = spec.get("heads", 4), spec.get("seqlen_q", 37), spec.get("head_dim", 32)
    return (
        spec.get("batch", 2),
        heads,
        spec.get("heads_kv", heads),
        seqlen_q,
        spec.get("seqlen_k", seqlen_q),
        head_dim,
        spec.get("head_dim_v", head_dim),
    )


def gradients_of(spec: dict[str, Any]) -> tuple[str, ...]:
    """Every differentiable argument that the spec has, unless it names some."""
    if "gradients" in spec:
        return tuple(spec["gradients"])
    names = ["q", "k", "v"]
    if "mask" in spec and not spec["mask"].startswith("bool"):
        names.append("mask")
    if "sinks" in spec:
        names.append("sinks")
    return tuple(names)


def case(name: str, dtype: torch.dtype, **spec: Any) -> Case:
    return Case(
        op="attention",
        name=name,
        dtype=dtype,
        make=functools.partial(make, spec=spec),
        gradients=gradients_of(spec),
        output_gradients=("out", "lse") if spec.get("lse") == "gradient" else (),
        upstream=spec.get("upstream", "dense"),
        bitwise=spec.get("deterministic", False),
        spec=spec,
    )


#: Feature by feature; every op of this family takes them.
FEATURES: dict[str, dict[str, Any]] = {
    "causal_top_left": {"causal": "top_left"},
    "causal_bottom_right": {"causal": "bottom_right"},
    "window_left": {"window": (9, None)},
    "window_right": {"window": (None, 4)},
    "window_both": {"window": (16, 3)},
    "window_diagonal": {"window": (0, 0), "sinks": "same"},
    "window_causal": {"window": (16, 0), "causal": "bottom_right"},
    "window_top_left": {"window": (5, 2), "causal": "top_left"},
    "softcap": {"softcap": 5.0},
    "softcap_tight_causal": {"softcap": 0.5, "causal": "top_left"},
    "alibi_heads": {"alibi": "h", "causal": "bottom_right"},
    "alibi_batch": {"alibi": "bh"},
    "sinks": {"sinks": "same"},
    "sinks_float32": {"sinks": "float32", "causal": "top_left"},
    "sinks_window": {"sinks": "same", "window": (4, 0)},
    "scale": {"scale": 0.3},
    "scale_negative": {"scale": -0.2, "causal": "top_left"},
    "scale_zero": {"scale": 0.0},
    "mqa": {"heads_kv": 1},
    "gqa": {"heads": 6, "heads_kv": 2, "causal": "bottom_right"},
    "lse": {"lse": "value"},
    "lse_causal": {"lse": "value", "causal": "bottom_right"},
    "everything": {
        "mask": "float bhqk",
        "causal": "bottom_right",
        "window": (24, 0),
        "softcap": 10.0,
        "alibi": "bh",
        "sinks": "same",
        "heads_kv": 2,
        "lse": "value",
    },
}

MASKS = (
    "bool bhqk",
    "bool 11qk",
    "bool b11k",
    "bool 1hq1",
    "bool qk",
    "bool bhqk rows",
    "bool 11qk expanded",
    "bool bhqk transposed",
    "float bhqk",
    "float 1hqk",
    "float b1qk",
    "float 11qk",
    "float b11k",
    "float bh1k",
    "float bhq1",
    "float 1111",
    "float hqk",
    "float32 1hqk",
    "float32 b11k",
    "float bhqk inf",
    "float 1hqk rows",
    "float 11qk min",
    "float32 bhqk min",
    "float 1hqk expanded",
    "float 11qk transposed",
)

# Around the multiples of the kernels' tile sizes, and a single row or key.
_LENGTHS = (
    (1, 1),
    (1, 100),
    (100, 1),
    (2, 3),
    (16, 16),
    (63, 65),
    (64, 64),
    (65, 63),
    (127, 129),
    (130, 257),
    (257, 130),
)
_HEAD_DIMS = (
    (1, 1),
    (3, 3),
    (8, 8),
    (16, 16),
    (50, 50),
    (64, 64),
    (80, 80),
    (96, 96),
    (128, 128),
    (192, 192),
    (256, 256),
)
_VALUE_DIMS = ((64, 32), (32, 80), (50, 3), (1, 256), (256, 17))


def _specs() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "plain", {}
    for sq, sk in _LENGTHS:
        # With one key and no sink the gradients of q and k are zero by definition: nothing to compare.
        yield f"length_{sq}x{sk}", {"seqlen_q": sq, "seqlen_k": sk, **({"sinks": "same"} if sk == 1 else {})}
    # Where the cap is nearly reached its derivative, 1 - tanh^2, cancels; with one key nothing else hides that.
    yield "softcap_reached", {"seqlen_k": 1, "head_dim": 1, "softcap": 0.5, "sinks": "same"}
    # One row's products are dot products to a BLAS, and its sums are of vectors: less rounding than one long chain has.
    query = {"seqlen_q": 1, "head_dim": 24, "batch": 1, "sinks": "same"}
    yield "one_query", {**query, "seqlen_k": 136, "scale": 0.5}
    yield "one_query_long", {**query, "seqlen_k": 700}
    # Where one key has a row, its score's error is that of the lse, and nothing averages it out.
    steep = {"scale": 1.0, "lse": "value"}
    yield "steep", {**steep, "seqlen_q": 70, "seqlen_k": 70, "head_dim": 128}
    yield "steep_one_query", {**steep, "seqlen_q": 1, "seqlen_k": 130, "head_dim": 64}
    yield "one_key", {"seqlen_k": 1, "gradients": ["v"], "lse": "value"}
    for causal in ("top_left", "bottom_right"):
        for sq, sk in ((64, 64), (70, 130), (130, 70), (2, 90)):
            yield f"causal_{causal}_{sq}x{sk}", {"seqlen_q": sq, "seqlen_k": sk, "causal": causal, "lse": "value"}
    for d, dv in _HEAD_DIMS + _VALUE_DIMS:
        yield f"head_dim_{d}_{dv}", {"head_dim": d, "head_dim_v": dv, "causal": "bottom_right"}
    # In a narrow head delta is taken from the weights, of keys that may begin anywhere.
    for left, right in ((0, 0), (6, 0)):
        narrow = {"head_dim": 5, "seqlen_q": 40, "seqlen_k": 50, "window": (left, right), "sinks": "same"}
        yield f"narrow_window_{left}_{right}", narrow
    for name, feature in FEATURES.items():
        yield name, feature
        yield f"{name}_longer_keys", {**feature, "seqlen_q": 50, "seqlen_k": 90}
    for mask in MASKS:
        # Without a sink, the gradient of a mask that is the same for all keys of a query is zero by definition.
        sinks = {"sinks": "same"} if mask.split()[1].endswith("1") else {}
        yield "mask_" + mask.replace(" ", "_"), {"mask": mask, "seqlen_q": 33, "seqlen_k": 45, **sinks}
    yield "mask_causal_gqa", {"mask": "float b1qk", "causal": "top_left", "heads_kv": 2, "seqlen_q": 70}
    yield "mask_long", {"mask": "float 1hqk", "seqlen_q": 100, "seqlen_k": 260, "batch": 1}
    yield "mask_rows_sinks", {"mask": "bool bhqk rows", "sinks": "same", "lse": "gradient"}
    yield "mask_rows_lse", {"mask": "float bhqk rows", "lse": "gradient"}
    for p in (0.1, 0.5, 1.0):
        yield f"dropout_{p}", {"dropout_p": p}
    yield "dropout_everything", {**FEATURES["everything"], "dropout_p": 0.3}
    small = {"batch": 2, "heads": 2, "heads_kv": 1, "head_dim": 16, "seqlen_q": 7, "seqlen_k": 11, "window": (4, 0)}
    yield "small_everything", {**FEATURES["everything"], **small, "dropout_p": 0.3, "lse": "gradient"}
    one = {"batch": 1, "heads": 1, "sinks": "same", "lse": "gradient"}
    for mask in ("bool bhqk rows", "float32 bhqk inf"):
        yield f"small_{mask.split()[-1]}", {**small, **one, "mask": mask}
    yield "dropout_causal_longer_keys", {"dropout_p": 0.2, "causal": "bottom_right", "seqlen_q": 66, "seqlen_k": 130}
    for memory in MEMORIES[1:]:
        yield f"memory_{memory}", {"memory": memory, "causal": "top_left", "head_dim": 50, "heads": 3}
    yield "layout_bshd", {"layout": "bshd", "memory": "bshd", "mask": "float bhqk", "lse": "value"}
    yield "layout_bshd_transposed", {"layout": "bshd", "heads_kv": 2}
    yield "fused_gqa", {"memory": "fused", "heads_kv": 2, "causal": "bottom_right"}
    yield "lse_gradient", {"lse": "gradient"}
    yield "lse_gradient_gqa_causal", {"lse": "gradient", "heads_kv": 2, "causal": "top_left", "seqlen_q": 70}
    yield "large_logits", {"values": "large", "scale": 1.0, "head_dim": 16, "seqlen_q": 70}
    yield "large_logits_negative", {"values": "large", "scale": -1.0, "head_dim": 16, "causal": "top_left"}
    yield "equal_keys", {"values": "equal", "seqlen_q": 70}
    for upstream in ("expanded", "rows", "transposed"):
        yield f"upstream_{upstream}", {"upstream": upstream, "causal": "top_left"}
    # Sums of one gradient times many weights, in which what is wrong with all weights alike does not go out.
    yield (
        "upstream_rows_window",
        {
            "upstream": "rows",
            "batch": 1,
            "heads_kv": 1,
            "heads": 3,
            "seqlen_q": 96,
            "head_dim": 62,
            "window": (0, None),
        },
    )
    for gradients in (["q"], ["k"], ["v"], ["mask"], ["sinks"], ["q", "sinks"], ["v", "mask"]):
        yield (
            f"gradient_of_{'_'.join(gradients)}",
            {"mask": "float 1hqk", "sinks": "same", "gradients": gradients, "heads_kv": 2},
        )
    yield "no_gradient", {"gradients": [], "causal": "bottom_right", "seqlen_q": 100}
    yield "deterministic", {"deterministic": True, "heads_kv": 1, "seqlen_q": 130, "mask": "float 11qk"}
    for empty in ("batch", "heads", "seqlen_q", "seqlen_k"):
        yield f"empty_{empty}", {empty: 0, **({"seqlen_k": 5} if empty == "seqlen_q" else {}), "lse": "value"}
    yield "empty_keys_sinks", {"seqlen_q": 5, "seqlen_k": 0, "sinks": "same", "lse": "gradient"}
    yield "empty_keys_mask", {"seqlen_q": 5, "seqlen_k": 0, "mask": "float 1hq1"}
    yield "one_key_sinks", {"seqlen_q": 70, "seqlen_k": 1, "head_dim": 1, "sinks": "same", "lse": "gradient"}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, spec in _specs():
        yield case(name, dtype, **spec)
