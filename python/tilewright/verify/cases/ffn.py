"""Cases of ffn."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ...ops.ffn import ACTIVATIONS, GATED
from ..case import Case, Maker


def make(m: Maker, *, spec: dict[str, Any]) -> dict[str, Any]:
    rows = spec.get("rows", 19)
    leading = (rows,) if isinstance(rows, int) else tuple(rows)
    features, hidden = spec.get("features", 24), spec.get("hidden", 40)
    out_features = spec.get("out_features", features)
    activation = spec.get("activation", "gelu_tanh")
    inner = 2 * hidden if activation in GATED else hidden
    transposed = {"order": (1, 0)} if spec.get("transposed_weights") else {}
    memory = spec.get("memory", {})
    arguments: dict[str, Any] = {
        "x": m.normal(*leading, features, scale=spec.get("x_scale", 1.0), **memory),
        # Weights of the scale that keeps activations near 1, as an initialised model has them.
        "w_in": m.normal(inner, features, scale=max(features, 1) ** -0.5, **transposed),
        "w_out": m.normal(out_features, hidden, scale=max(hidden, 1) ** -0.5, **transposed),
        "activation": activation,
    }
    if spec.get("biases"):
        arguments["b_in"] = m.normal(inner)
        arguments["b_out"] = m.normal(out_features)
    if "only_bias" in spec:
        name = spec["only_bias"]
        arguments[name] = m.normal(inner if name == "b_in" else out_features)
    if spec.get("residual"):
        arguments["residual"] = m.normal(*leading, out_features)
    for name in ("dropout_p", "recompute"):
        if name in spec:
            arguments[name] = spec[name]
    return arguments


def _gradients(spec: dict[str, Any]) -> tuple[str, ...]:
    if "gradients" in spec:
        return tuple(spec["gradients"])
    names = ["x", "w_in", "w_out"]
    if spec.get("biases"):
        names += ["b_in", "b_out"]
    if "only_bias" in spec:
        names.append(spec["only_bias"])
    if spec.get("residual"):
        names.append("residual")
    return tuple(names)


def case(name: str, dtype: torch.dtype, **spec: Any) -> Case:
    return Case(
        op="ffn",
        name=name,
        dtype=dtype,
        make=functools.partial(make, spec=spec),
        gradients=_gradients(spec),
        upstream=spec.get("upstream", "dense"),
        spec=spec,
    )


_EVERYTHING = {"biases": True, "residual": True, "dropout_p": 0.2}


def _specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for activation in ACTIVATIONS:
        yield f"{activation}", {"activation": activation}
        yield f"{activation}_everything", {"activation": activation, **_EVERYTHING, "rows": 35}
        yield f"{activation}_recompute", {"activation": activation, "recompute": True, "biases": True}
    for rows in (1, 2, 5, 6, 7, 16, 33, 64, 130):
        yield f"rows_{rows}", {"rows": rows, "biases": True}
    for features, hidden, out in (
        (1, 1, 1),
        (3, 5, 7),
        (16, 16, 16),
        (17, 31, 15),
        (33, 257, 33),
        (64, 256, 64),
        (256, 40, 16),
    ):
        yield (
            f"sizes_{features}_{hidden}_{out}",
            {"features": features, "hidden": hidden, "out_features": out, "biases": True},
        )
        gated = {"features": features, "hidden": hidden, "out_features": out, "activation": "swiglu"}
        yield f"sizes_{features}_{hidden}_{out}_gated", gated
    yield "wide", {"rows": 40, "features": 128, "hidden": 512, "biases": True}
    yield "wide_one_row", {"rows": 1, "features": 128, "hidden": 512, "biases": True, "residual": True}
    yield "only_b_in", {"only_bias": "b_in"}
    yield "only_b_out", {"only_bias": "b_out"}
    yield "residual", {"residual": True}
    for p in (0.1, 0.5, 1.0):
        yield f"dropout_{p}", {"dropout_p": p}
    yield "dropout_odd_recompute", {"dropout_p": 0.3, "out_features": 13, "recompute": True, "rows": (3, 11)}
    yield "transposed_weights", {"transposed_weights": True, "biases": True}
    yield "transposed_weights_gated_one_row", {"transposed_weights": True, "activation": "geglu", "rows": 1}
    # The gated half begins where no wide copy of a half type may.
    yield "transposed_weights_gated_odd_half", {"transposed_weights": True, "activation": "swiglu", "hidden": 12}
    yield "three_dims", {"rows": (3, 7), **_EVERYTHING}
    yield "four_dims_gated", {"rows": (2, 3, 4), "activation": "swiglu", "residual": True}
    yield "vector", {"rows": (), "biases": True}
    yield "memory_padded", {"memory": {"pad": 3}, "biases": True}
    yield "memory_transposed", {"memory": {"order": (1, 0)}}
    yield "memory_misaligned", {"memory": {"offset": 1}, "rows": 7}
    for activation in ACTIVATIONS:
        yield f"large_inputs_{activation}", {"activation": activation, "x_scale": 30.0, "features": 16, "hidden": 16}
    for upstream in ("expanded", "rows", "transposed"):
        yield f"upstream_{upstream}", {"upstream": upstream, **_EVERYTHING}
    for gradients in (["x"], ["w_in"], ["w_out"], ["b_in"], ["b_out"], ["residual"], ["x", "b_out"]):
        yield f"gradient_of_{'_'.join(gradients)}", {"gradients": gradients, **_EVERYTHING}
    yield "no_gradient", {"gradients": [], "rows": 50, "biases": True}
    yield "empty_rows", {"rows": 0, **_EVERYTHING}
    yield "empty_hidden", {"hidden": 0, "biases": True}
    yield "empty_features", {"features": 0, "out_features": 8, "biases": True}
    yield "empty_out", {"out_features": 0, "biases": True}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, spec in _specs():
        yield case(name, dtype, **spec)
