"""The kernels of the feed-forward block as they are launched, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .compile import Instance
from .ffn import in_kernel, in_parts_kernel, out_kernel, out_parts_kernel
from .ffn_backward import drop_kernel, hidden_gradient_kernel
from .ffn_product import product_kernel
from .ffn_table import TABLE
from .launch import table_config

#: Of a key in the table: the type of the tensors.
_DTYPES = {"half": "bf16", "half_tma": "bf16", "fp32": "fp32", "small_half": "bf16", "small_fp32": "fp32"}
_WHOLE, _SMALL = ("half", "fp32"), ("small_half", "small_fp32")

#: Arguments that are neither tensors of the call's dtype nor sizes and strides, which are multiples of 16.
_SPECIAL = {"rng": "*i64:16", "threshold": "i32", "scale": "fp32", "parts": "*fp32:16", "sums": "*fp32:16"}
_TENSORS = (
    "x", "w_in", "w_out", "a", "b", "dz", "dout", "dpre", "dpre_up", "pre", "pre_up", "hidden", "out", "bias",
    "residual",
)  # fmt: skip
#: What is a descriptor with TMA, besides the first argument: the other operand, and what epilogues read and write.
_RIGHT, _TILES = ("w_in", "w_out", "b"), ("dpre", "dpre_up", "pre", "pre_up", "hidden", "out")

_CONTIGUOUS_WEIGHT: dict[str, Any] = {"w_depth_stride": 1}
_NO_DROPOUT: dict[str, Any] = {"rng": None, "threshold": 0, "scale": 1.0}
_NO_RESIDUAL: dict[str, Any] = {"residual": None, "residual_row_stride": 0, "residual_column_stride": 1}


def _instance(architecture: str, row: str, key: str, kernel: Any, variant: str, **constants: Any) -> Instance:
    found, dtype = table_config(architecture, row, key), _DTYPES[key]
    if "EVEN_K" in kernel.arg_names:
        constants.setdefault("EVEN_K", True)
        constants.setdefault("TMA", "")
    if constants.get("GATED") is False or "pre" in constants:
        constants.update({n: None for n in ("pre_up", "dpre_up") if n in kernel.arg_names})
    free = [n for n in kernel.arg_names if n not in constants and n not in found.blocks]
    types = {n: _SPECIAL.get(n, f"*{dtype}:16" if n in _TENSORS else "i32:16") for n in free}
    if row == "ffn_product" and key in _SMALL:
        types["out"] = "*fp32:16"  # parts of a sum
    if constants.get("TMA"):
        types.update(_descriptors(kernel, constants, found.blocks))
    return Instance(f"{row} {key} {variant}".rstrip(), kernel, types, constants, found)


def _descriptors(kernel: Any, constants: dict[str, Any], blocks: dict[str, int]) -> dict[str, str]:
    """The types of a kernel's descriptors: see ffn_product.Route."""
    m, n, k, major = blocks["BLOCK_M"], blocks["BLOCK_N"], blocks["BLOCK_K"], constants["TMA"]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_TILES, (m, n // blocks["PIECES"]))
    shapes.update(dict.fromkeys(_RIGHT, (n, k) if major[1] == "k" else (k, n)))
    if kernel is in_kernel and constants["GATED"]:
        shapes["w_in"] = (2, n, k)
    shapes[kernel.arg_names[0]] = (m, k) if major[0] == "k" else (k, m)
    return {
        name: f"tensordesc<bf16{list(shape)}>"
        for name, shape in shapes.items()
        if name in kernel.arg_names and name not in constants
    }


def instances(architecture: str) -> Iterator[Instance]:
    """Every kernel in every configuration of the table, with what changes its code: options present and absent, a depth
    that is no multiple of the block, gates, transposed operands."""
    for make in (_first, _second, _products, _parts, _gradients):
        yield from make(architecture)
    if "half_tma" in TABLE[architecture]["ffn_in"]:
        yield from _with_tma(architecture)


def _first(architecture: str) -> Iterator[Instance]:
    for row, acts, gated in (
        ("ffn_in", ("relu2", "gelu", "gelu_tanh"), False),
        ("ffn_in_gated", ("gelu", "silu"), True),
    ):
        fixed = {**_CONTIGUOUS_WEIGHT, "x_depth_stride": 1, "GATED": gated}
        for key in (*_WHOLE, *_SMALL):
            for act in acts:
                yield _instance(architecture, row, key, in_kernel, f"{act} pre", ACTIVATION=act, **fixed)
        for key in _WHOLE:
            ragged = {**fixed, "bias": None, "pre": None, "ACTIVATION": acts[-1], "EVEN_K": False}
            yield _instance(architecture, row, key, in_kernel, f"{acts[-1]} ragged", **ragged)
            transposed = {"w_row_stride": 1, "x_depth_stride": 1, "GATED": gated, "ACTIVATION": acts[-1]}
            yield _instance(architecture, row, key, in_kernel, f"{acts[-1]} transposed", **transposed)


def _second(architecture: str) -> Iterator[Instance]:
    for key in (*_WHOLE, *_SMALL):
        fixed = {**_CONTIGUOUS_WEIGHT, "residual_column_stride": 1}
        yield _instance(architecture, "ffn_out", key, out_kernel, "residual dropout", **fixed)
        fixed = {**_CONTIGUOUS_WEIGHT, **_NO_DROPOUT, **_NO_RESIDUAL}
        yield _instance(architecture, "ffn_out", key, out_kernel, "plain", **fixed)
    for key in _WHOLE:
        yield _instance(architecture, "ffn_out", key, out_kernel, "ragged", EVEN_K=False, **fixed)


def _products(architecture: str) -> Iterator[Instance]:
    for key in (*_WHOLE, *_SMALL):
        fixed = {"a_depth_stride": 1, "b_depth_stride": 1}
        yield _instance(architecture, "ffn_product", key, product_kernel, "", **fixed)
    for key in _WHOLE:
        fixed = {"a_row_stride": 1, "b_column_stride": 1}
        yield _instance(architecture, "ffn_product", key, product_kernel, "transposed", **fixed)


def _parts(architecture: str) -> Iterator[Instance]:
    for key in _SMALL:
        for act, gated in (("gelu", False), ("silu", True)):
            fixed = {"ACTIVATION": act, "GATED": gated}
            yield _instance(architecture, "ffn_in_parts", key, in_parts_kernel, act, **fixed)
        fixed = {"residual_column_stride": 1}
        yield _instance(architecture, "ffn_out_parts", key, out_parts_kernel, "residual dropout", **fixed)


def _gradients(architecture: str) -> Iterator[Instance]:
    for key in _WHOLE:
        yield _instance(architecture, "ffn_drop", key, drop_kernel, "", column_stride=1)
        for row, acts, gated in (
            ("ffn_hidden_gradient", ("gelu", "silu"), False),
            ("ffn_hidden_gradient_gated", ("gelu", "silu"), True),
        ):
            # w_out (E, F) contiguous is transposed here.
            fixed = {"dz_depth_stride": 1, "w_column_stride": 1, "GATED": gated}
            for act in acts:
                yield _instance(architecture, row, key, hidden_gradient_kernel, act, ACTIVATION=act, **fixed)
            plain = {**fixed, "ACTIVATION": "gelu", "hidden": None, "sums": None, "EVEN_K": False}
            yield _instance(architecture, row, key, hidden_gradient_kernel, "gelu ragged", **plain)


def _with_tma(architecture: str) -> Iterator[Instance]:
    def instance(row: str, kernel: Any, variant: str, tma: str, **constants: Any) -> Instance:
        return _instance(architecture, row, "half_tma", kernel, variant, TMA=tma, **constants)

    for act in ("relu2", "gelu", "gelu_tanh"):
        fixed = {"ACTIVATION": act, "GATED": False}
        yield instance("ffn_in", in_kernel, f"{act} pre", "kk", **fixed)
        yield instance("ffn_in", in_kernel, act, "kk", pre=None, **fixed)
    yield instance("ffn_in", in_kernel, "gelu_tanh transposed", "kn", **fixed)
    for act in ("gelu", "silu"):
        fixed = {"ACTIVATION": act, "GATED": True}
        yield instance("ffn_in_gated", in_kernel, f"{act} pre", "kk", **fixed)
        yield instance("ffn_in_gated", in_kernel, act, "kk", pre=None, **fixed)
    for tma, word in (("kk", ""), ("kn", " transposed")):
        yield instance("ffn_out", out_kernel, f"residual dropout{word}", tma, residual_column_stride=1)
    yield instance("ffn_out", out_kernel, "plain", "kk", **_NO_DROPOUT, **_NO_RESIDUAL)
    for row, gated in (("ffn_hidden_gradient", False), ("ffn_hidden_gradient_gated", True)):
        for act in ("gelu", "silu"):
            yield instance(row, hidden_gradient_kernel, act, "kn", ACTIVATION=act, GATED=gated)
        plain = {"ACTIVATION": "gelu", "GATED": gated, "hidden": None, "sums": None}
        yield instance(row, hidden_gradient_kernel, "gelu plain", "kk", **plain)
    for tma in ("kk", "kn", "mk", "mn"):
        yield instance("ffn_product", product_kernel, tma, tma)
