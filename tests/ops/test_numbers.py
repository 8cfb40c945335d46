"""Numbers may be Python's, NumPy's, or tensors of no dimensions, wherever an op takes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tilewright.catalog import OPS

KINDS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda n: np.int64(n) if isinstance(n, int) else np.float32(n),
    "numpy of no dimensions": lambda n: np.array(n)[()],
    "tensor": torch.tensor,
}

#: Of each argument that is a number, one that differs from its default.
NUMBERS = {
    "scale": 0.25, "softcap": 2.5, "dropout_p": 0.25, "max_seqlen_q": 7, "max_seqlen_k": 9, "num_splits": 2, "dim": 0,
    "window": (3, 1), "cache_seqlens": 2,
}  # fmt: skip


def _arguments(op: str) -> dict[str, Any]:
    """The required ones."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    if op == "ffn":
        return {"x": draw(3, 8), "w_in": draw(16, 8), "w_out": draw(8, 16)}
    if "softmax" in op:
        return {"x": draw(3, 8)}
    if op == "varlen_attention":
        bounds = torch.tensor([0, 2, 7], dtype=torch.int32)
        qkv = {n: draw(7, 2, 8) for n in "qkv"}
        return {**qkv, "cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "max_seqlen_q": 6, "max_seqlen_k": 6}
    names = ("q", "k_cache", "v_cache") if op == "kvcache_attention" else ("q", "k", "v")
    return {n: draw(2, 2, 5, 8) for n in names}


def _result(op: str, arguments: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)
    out = OPS[op][1](**arguments)
    return out if isinstance(out, torch.Tensor) else out[0]


def _converted(number: Any, kind: Callable[[Any], Any]) -> Any:
    return tuple(kind(n) for n in number) if isinstance(number, tuple) else kind(number)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", OPS)
def test_a_number_may_be_of_any_kind(op: str, kind: str) -> None:
    names = set(NUMBERS) & set(inspect.signature(OPS[op][1]).parameters)
    if kind == "tensor":
        names -= {"cache_seqlens"}  # there a tensor holds a length for each sequence
    assert names
    for name in names:
        arguments = _arguments(op)
        expected = _result(op, {**arguments, name: NUMBERS[name]})
        found = _result(op, {**arguments, name: _converted(NUMBERS[name], KINDS[kind])})
        assert torch.equal(found, expected), f"{op}: {name} as {kind} is not taken as the number that it is"


@pytest.mark.parametrize("op", OPS)
def test_what_is_not_one_number_is_refused_by_name(op: str) -> None:
    for name in {"scale", "dropout_p", "softcap"} & set(inspect.signature(OPS[op][1]).parameters):
        for value, words in (
            (torch.ones(1), r"a tensor of shape \(1,\)"),
            (torch.tensor(1j), "dtype torch.complex64"),
            (torch.tensor(0.5, requires_grad=True), "requires a gradient"),
            (np.ones(2), "must be a number, got ndarray"),
            (np.complex64(1), "must be a number, got complex64"),
            (np.bool_(True), "must be a number, got bool"),
            (torch.tensor(torch.nan), "must be finite|accepted"),
        ):
            with pytest.raises((TypeError, ValueError), match=rf"{name}\b.*({words})"):
                OPS[op][1](**{**_arguments(op), name: value})


@pytest.mark.parametrize("op", sorted(set(OPS) - {"ffn"}))  # which has no factor
@pytest.mark.parametrize("value", [1e39, -1e39, 1e31, 1e-39, 1e-320])
def test_a_factor_that_float32_does_not_hold_is_refused_by_name(op: str, value: float) -> None:
    names = {"scale", "softcap"} & set(inspect.signature(OPS[op][1]).parameters)
    assert names
    for name in names:
        if name == "scale" or value > 0:
            with pytest.raises(ValueError, match=rf"{name}.* is out of the range of float32.* 2\*\*-126"):
                OPS[op][1](**_arguments(op), **{name: value})


def test_a_cap_and_a_scale_that_lie_too_far_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scale / softcap=.* is out of the range"):
        OPS["attention"][1](**_arguments("attention"), scale=1e20, softcap=1e-20)
