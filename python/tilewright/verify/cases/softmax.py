"""Cases of softmax and log_softmax."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Maker

OPS = ("softmax", "log_softmax")


def _values(m: Maker, values: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers for x. "large": whole, up to 1e4 either way; "equal": one everywhere; "inf": -inf in places; "normal"."""
    if values == "large":
        return m.draw_integers(-80, 80, *shape) * 128  # exact in every dtype
    if values == "equal":
        return m.draw_normal(1).expand(shape)
    x = m.draw_normal(*shape, scale=3.0)
    return x.masked_fill(m.draw_bool(0.3, *shape), -torch.inf) if values == "inf" else x


def _mask(m: Maker, spec: str, shape: tuple[int, ...]) -> Tensor:
    """A mask from words: its kind ("bool", "float", "float32"), which dimensions it has ("x") or broadcasts ("1"), and
    how it is special: "rows" excludes every second row entirely (over the last dimension), "inf" single entries,
    "min" fills every second row with finfo.min, "expanded" views a smaller mask at full size."""
    kind, dims, *special = spec.split()
    kept = [n if d == "x" else 1 for n, d in zip(shape[len(shape) - len(dims) :], dims, strict=True)]
    if kind == "bool":
        mask = m.draw_bool(0.7, *kept)
    else:
        mask = m.draw_normal(*kept).to(torch.float32 if kind == "float32" else m.dtype)
    if "inf" in special:
        mask = mask.masked_fill(m.draw_bool(0.3, *kept), -torch.inf)
    if "rows" in special:
        mask[..., ::2, :] = False if kind == "bool" else -torch.inf
    if "min" in special:
        mask[..., ::2, :] = torch.finfo(mask.dtype).min
    mask = m.place(mask)
    return mask.expand(shape) if "expanded" in special else mask


def make(m: Maker, *, spec: dict[str, Any]) -> dict[str, Any]:
    shape = tuple(spec.get("shape", (7, 33)))
    x = m.place(_values(m, spec.get("values", "normal"), shape), **spec.get("memory", {}))
    if spec.get("every_second"):
        x = x[..., ::2]
    if spec.get("expanded"):
        x = x[:1].expand(shape)
    arguments: dict[str, Any] = {"x": x}
    if "mask" in spec:
        arguments["mask"] = _mask(m, spec["mask"], tuple(x.shape))
    for name in ("dim", "scale", "causal"):
        if name in spec:
            arguments[name] = spec[name]
    return arguments


def _mask_has_gradient(spec: dict[str, Any]) -> bool:
    """A float mask has, unless it is the same for a whole row: its gradient is zero then, with nothing to compare."""
    if spec.get("mask", "bool").startswith("bool"):
        return False
    dims: str = spec["mask"].split()[1]
    rank = len(spec.get("shape", (7, 33)))
    return dims.rjust(rank, "1")[spec.get("dim", -1)] == "x"


def case(op: str, name: str, dtype: torch.dtype, **spec: Any) -> Case:
    gradients = ("x", "mask") if _mask_has_gradient(spec) else ("x",)
    return Case(
        op=op,
        name=name,
        dtype=dtype,
        make=functools.partial(make, spec=spec),
        gradients=tuple(spec.get("gradients", gradients)),
        upstream=spec.get("upstream", "dense"),
        spec=spec,
    )


MASKS = (
    "bool xx",
    "bool 1x",
    "bool x1",
    "bool x",
    "bool xx rows",
    "float xx",
    "float 1x",
    "float x1",
    "float 11",
    "float x",
    "float32 xx",
    "float32 1x",
    "float xx inf",
    "float xx rows",
    "float xx min",
    "float 1x expanded",
)

_WIDTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 127, 1000, 1023, 4097)


def _specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for width in _WIDTHS:
        yield f"width_{width}", {"shape": (max(5, 300 // width), width)}
    for width in (32769, 100_000):
        yield f"width_{width}", {"shape": (2, width)}
    for shape, dim in (
        ((6, 7), 0),
        ((5, 6, 7), 1),
        ((4, 5, 6, 7), -2),
        ((4, 5, 6, 7), 0),
        ((2, 3, 2, 3, 5), 2),
        ((50,), 0),
        ((33, 65), 0),
    ):
        yield f"dim_{dim}_of_{len(shape)}_{shape[dim]}", {"shape": shape, "dim": dim}
    yield "wide_columns", {"shape": (1000, 70), "dim": 0}
    yield "scalar", {"shape": (), "dim": 0}
    yield "eight_dims", {"shape": (2, 1, 2, 1, 2, 1, 2, 9)}
    for scale in (0.125, -2.0, 0.0):
        yield f"scale_{scale}", {"scale": scale}
    for mask in MASKS:
        yield "mask_" + mask.replace(" ", "_"), {"mask": mask, "shape": (12, 45), "scale": 0.7}
    yield "mask_four_dims", {"mask": "float x11x", "shape": (2, 3, 17, 40)}
    yield "mask_heads", {"mask": "bool x1xx rows", "shape": (2, 3, 17, 40), "scale": 0.125}
    yield "mask_other_dim", {"mask": "float x1x", "shape": (3, 20, 6), "dim": 1}
    yield "mask_wide", {"mask": "float 1x", "shape": (3, 5000)}
    for causal in ("top_left", "bottom_right"):
        for shape in ((20, 20), (2, 3, 20, 33), (2, 33, 20), (3, 1, 40)):
            yield f"causal_{causal}_{'x'.join(map(str, shape))}", {"causal": causal, "shape": shape}
    yield "causal_mask_scale", {"causal": "bottom_right", "mask": "float x1xx", "shape": (2, 3, 20, 33), "scale": 0.2}
    yield "causal_bool_rows", {"causal": "top_left", "mask": "bool xx rows", "shape": (30, 30)}
    yield "memory_transposed", {"shape": (20, 30), "memory": {"order": (1, 0)}}
    yield "memory_transposed_dim_0", {"shape": (20, 30), "memory": {"order": (1, 0)}, "dim": 0}
    yield "memory_permuted", {"shape": (4, 5, 6, 7), "memory": {"order": (2, 0, 3, 1)}, "mask": "float xx1x"}
    # Weights of one size: the error of a sum over all of them, along a strided dimension.
    yield "memory_transposed_long", {"shape": (64, 2000), "memory": {"order": (1, 0)}, "scale": 0.125}
    yield "memory_padded", {"shape": (6, 4, 33), "memory": {"pad": 5}}
    yield "memory_misaligned", {"shape": (6, 130), "memory": {"offset": 1}}
    yield "memory_misaligned_vectors", {"shape": (6, 128), "memory": {"offset": 1}}
    yield "memory_every_second", {"shape": (6, 130), "every_second": True}
    yield "memory_expanded", {"shape": (6, 50), "expanded": True}
    yield "large_logits", {"values": "large", "shape": (9, 100)}
    yield "equal_logits", {"values": "equal", "shape": (9, 1000)}
    yield "minus_infinity_inputs", {"values": "inf", "shape": (9, 100)}
    for upstream in ("rows", "transposed"):  # one number everywhere would give a gradient of zero
        yield f"upstream_{upstream}", {"upstream": upstream, "shape": (20, 40)}
    yield "gradient_of_mask", {"mask": "float 1x", "gradients": ["mask"]}
    yield "gradient_of_x_only", {"mask": "float xx", "gradients": ["x"]}
    yield "no_gradient", {"gradients": [], "shape": (30, 300)}
    for shape in ((0, 5), (5, 0), (0,), (3, 0, 4)):
        yield f"empty_{'x'.join(map(str, shape))}", {"shape": shape}
    yield "empty_masked", {"shape": (0, 5), "mask": "float 1x"}
    yield "many_rows", {"shape": (40, 11, 7), "scale": math.pi}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for op in OPS:
        for name, spec in _specs():
            yield case(op, name, dtype, **spec)
