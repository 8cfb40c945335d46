"""What is excluded has no part in derivatives of any order and mode, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jvp

import tilewright as tw

K, V, T = torch.randn(3, 1, 2, 5, 3, dtype=torch.float64).unbind()
Q = torch.randn(1, 2, 4, 3, dtype=torch.float64)
EXCLUDED = torch.arange(5) == 4
#: Of the last key, for all queries.
WAYS: dict[str, dict[str, Any]] = {
    "causal": {"causal": "top_left"},
    "window": {"causal": "top_left", "window": (2, None)},
    "mask": {"mask": ~EXCLUDED},
    "added": {"mask": torch.where(EXCLUDED, -torch.inf, 0.0)[None].double()},
}


def _rows(k: Tensor, v: Tensor, way: str, q: Tensor = Q) -> Tensor:
    out: Any = tw.attention(q, k, v, **WAYS[way], backend="reference")
    return out  # type: ignore[no-any-return]


def _first(k: Tensor, v: Tensor, way: str) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (Q, k, v)]
    return [*torch.autograd.grad(_rows(*leaves[1:], way, leaves[0]).square().sum(), leaves)]


def _second(k: Tensor, v: Tensor, way: str) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (Q, k, v)]
    first = torch.autograd.grad(_rows(*leaves[1:], way, leaves[0]).square().sum(), leaves, create_graph=True)
    return [*torch.autograd.grad(sum(g[..., :4, :].square().sum() for g in first), leaves)]


def _forward_mode(k: Tensor, v: Tensor, way: str) -> list[Tensor]:
    return [jvp(lambda q, k, v: _rows(k, v, way, q), (Q, k, v), (T[:, :, :4], T, T + 1))[1]]


def _jacobian(k: Tensor, v: Tensor, way: str) -> list[Tensor]:
    return [jacfwd(lambda q: _rows(k, v, way, q))(Q)]


DERIVATIVES: dict[str, Callable[[Tensor, Tensor, str], list[Tensor]]] = {
    "values": lambda k, v, way: [_rows(k, v, way)],
    "gradients": _first,
    "double backward": _second,
    "forward mode": _forward_mode,
    "vmap of forward mode": _jacobian,
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_excluded_keys_and_values_have_no_part(name: str, way: str, value: float) -> None:
    k, v = (t.clone() for t in (K, V))
    expected = DERIVATIVES[name](k, v, way)
    k[:, :, 4], v[:, :, 4] = value, value
    for found, plain in zip(DERIVATIVES[name](k, v, way), expected, strict=True):
        torch.testing.assert_close(found, plain)
