"""What tilewright.nn.MultiheadAttention refuses, before any kernel runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tilewright.nn import MultiheadAttention

N, L, S, E, H = 2, 5, 7, 12, 3


def r(*sizes: int) -> Tensor:
    return torch.randn(*sizes)


Q, K = r(N, L, E), r(N, S, E)
NESTED = torch.nested.nested_tensor([r(3, E), r(4, E)], layout=torch.jagged)

REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "nested": ((NESTED,) * 3, {}, TypeError, "query is a nested tensor; pass a padded one"),
    "no tensor": (([1.0], K, K), {}, TypeError, "query must be a torch.Tensor, got list"),
    "dtype": ((Q.double(), K, K), {}, TypeError, "query has dtype torch.float64 but the module's weight has"),
    "dims": ((r(1, N, L, E), K, K), {}, ValueError, "query has shape"),
    "dims mixed": ((Q, r(S, E), K), {}, ValueError, "key has shape"),
    "features": ((Q, r(N, S, 9), K), {}, ValueError, "key of shape .* has 9 features; the module expects 12"),
    "batch": ((Q, r(3, S, E), K), {}, ValueError, "key of shape .* has batch size 3 but query has 2"),
    "positions": ((Q, K, r(N, 6, E)), {}, ValueError, "value has 6 positions but key has 7"),
    "padding shape": ((Q, K, K), {"key_padding_mask": torch.ones(S).bool()}, ValueError, r"\(N, S\) = \(2, 7\)"),
    "padding without batch": (
        (Q[0], K[0], K[0]),
        {"key_padding_mask": torch.ones(1, S).bool()},
        ValueError,
        r"\(S,\) = \(7,\)",
    ),
    "integer padding": (
        (Q, K, K),
        {"key_padding_mask": torch.ones(N, S).int()},
        TypeError,
        "key_padding_mask has dtype",
    ),
    "mask shape": ((Q, K, K), {"attn_mask": torch.ones(N, L, S).bool()}, ValueError, r"\(6, 5, 7\)"),
    "mask dtype": ((Q, K, K), {"attn_mask": r(L, S).double()}, TypeError, "attn_mask has dtype torch.float64"),
    "mask type": ((Q, K, K), {"attn_mask": [0.0]}, TypeError, "attn_mask must be a torch.Tensor, got list"),
    "hint alone": ((Q, K, K), {"is_causal": True}, ValueError, "is_causal=True was given without attn_mask"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments(case: str) -> None:
    arguments, options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        MultiheadAttention(E, H, batch_first=True)(*arguments, **options)


@pytest.mark.parametrize(
    ("sizes", "options", "kind", "message"),
    [
        ((512, 1), {}, ValueError, "embed_dim / num_heads = 512; accepted are head dims up to 256"),
        ((12, 3), {"dropout": 1.5}, ValueError, "dropout=1.5 must be a probability"),
        ((0, 3), {}, ValueError, "embed_dim"),
    ],
)
def test_wrong_sizes(sizes: tuple[int, int], options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        MultiheadAttention(*sizes, **options)
