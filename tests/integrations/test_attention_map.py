"""tilewright.attention_map against the float64 reference, whose output is the weights where the values are a unit
matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tilewright as tw
from tilewright.attention_map import TILE, attention_map
from tilewright.ops.attention import prepare
from tilewright.reference.attention import forward

B, H, HKV, SQ, SK, D = 2, 4, 2, 9, 13, 8


def r(*sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64)


def expected(q: Tensor, k: Tensor, **options: Any) -> Tensor:
    """(B, H, Sq, Sk)."""
    eye = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
    given = {"mask": None, "causal": None, "window": None, "softcap": 0.0, "alibi_slopes": None, "sinks": None}
    rest = {"dropout_p": 0.0, "scale": None, "layout": "bhsd", "deterministic": False}
    return forward(prepare(q, k, eye, **{**given, **rest, **options}), torch.float64)[0]


EMPTY_ROW = torch.rand(B, 1, SQ, SK) > 0.4
EMPTY_ROW[:, :, 3] = False
ADDED = r(H, SQ, SK)
ADDED[:, :, 2] = -torch.inf

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.7},
    "scale 0": {"scale": 0.0},
    "top left": {"causal": "top_left"},
    "bottom right": {"causal": "bottom_right"},
    "window": {"window": (2, 3)},
    "window, left only": {"window": (1, None)},
    "window, causal": {"window": (3, 5), "causal": "bottom_right"},
    "window, top left": {"window": (3, 0), "causal": "top_left"},
    "bool mask": {"mask": EMPTY_ROW},
    "float mask": {"mask": ADDED},
    "row mask": {"mask": torch.rand(B, 1, 1, SK) > 0.3},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": torch.rand(H)},
    "alibi by batch": {"alibi_slopes": torch.rand(B, H), "causal": "top_left"},
    "sinks": {"sinks": r(H)},
    "sinks, empty rows": {"sinks": r(H), "mask": EMPTY_ROW},
    "everything": {
        "mask": EMPTY_ROW,
        "causal": "bottom_right",
        "window": (6, None),
        "softcap": 2.0,
        "alibi_slopes": torch.rand(B, H),
        "sinks": r(H),
        "scale": 0.4,
    },
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("sizes", [(SQ, SK), (SK, SQ)])
def test_rows_and_top_keys_are_the_references(case: str, sizes: tuple[int, int]) -> None:
    options = dict(OPTIONS[case])
    mask = options.get("mask")
    if mask is not None and sizes != (SQ, SK):
        options["mask"] = mask.transpose(-1, -2)
    q, k = r(B, H, sizes[0], D), r(B, HKV, sizes[1], D)
    weights = expected(q, k, **options)
    lse = tw.attention(q, k, k, return_lse=True, **options)[1]
    rows = [7, 0, 3, 3, -1]
    for given in (None, lse):
        torch.testing.assert_close(attention_map(q, k, lse=given, **options), weights)
        torch.testing.assert_close(attention_map(q, k, rows=rows, lse=given, **options), weights[:, :, rows])
        values, indices = attention_map(q, k, rows=rows, top_k=4, lse=given, **options)
        torch.testing.assert_close(values, weights[:, :, rows].topk(4).values)
        found = weights[:, :, rows].gather(-1, indices.clamp(min=0))
        torch.testing.assert_close(found.masked_fill(indices < 0, 0.0), values)
        assert ((indices >= 0) == (values > 0)).all(), (
            "-1 stands for keys that a query does not see, and for these only"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    q, k = r(B, H, SQ, D).to(dtype), r(B, HKV, SK, D).to(dtype)
    weights = attention_map(q, k, sinks=torch.zeros(H))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(
        weights.double(), expected(q.double(), k.double(), sinks=torch.zeros(H)), rtol=1e-5, atol=1e-6
    )


def test_layout_strides_and_autocast() -> None:
    q, k = r(B, SQ, H, D), r(B, SK, HKV, D)
    weights = attention_map(q, k, layout="bshd")
    torch.testing.assert_close(weights, attention_map(q.transpose(1, 2), k.transpose(1, 2)))
    q, k = q.float().transpose(1, 2), k.float().transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = attention_map(q, k)
    torch.testing.assert_close(narrow, attention_map(q.bfloat16(), k.bfloat16()))


def test_weights_too_small_for_their_type_keep_their_order() -> None:
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([0.0, -200.0, -300.0]).view(1, 1, 3, 1)
    values, indices = attention_map(q, k, top_k=3, scale=1.0)
    assert values.tolist() == [[[[1.0, 0.0, 0.0]]]]
    assert indices.tolist() == [[[[0, 1, 2]]]]


def test_large_scores_and_empty_inputs() -> None:
    q = torch.full((1, 1, 2, 4), 1e4)
    torch.testing.assert_close(attention_map(q, q), torch.full((1, 1, 2, 2), 0.5))
    assert attention_map(q[:0], q[:0]).shape == (0, 1, 2, 2)
    assert attention_map(q, q[:, :, :0]).shape == (1, 1, 2, 0)
    assert attention_map(q[:, :, :0], q).shape == (1, 1, 0, 2)
    assert attention_map(q, q, rows=[], top_k=1)[0].shape == (1, 1, 0, 1)


def test_the_result_has_no_gradient_and_inputs_stay() -> None:
    q, k = r(B, H, SQ, D).requires_grad_(), r(B, H, SK, D).requires_grad_()
    before = q.detach().clone(), k.detach().clone()
    assert not attention_map(q, k).requires_grad
    assert torch.equal(q, before[0]) and torch.equal(k, before[1])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made inside; views count as what they show."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(result):
            if isinstance(t, Tensor) and not func.is_view:
                self.elements = max(self.elements, t.numel())
        return result


@pytest.mark.parametrize(
    ("rows", "top_k", "options"),
    [
        (None, 3, {"causal": "top_left", "window": (100, 0)}),
        (range(0, 16384, 16), 3, {"sinks": torch.zeros(2)}),
        ([5, 9000, -1], None, {"causal": "bottom_right", "mask": torch.rand(1, 1, 1, 16384) > 0.1}),
    ],
)
def test_no_tensor_grows_with_the_square_of_the_length(rows: Any, top_k: int | None, options: dict[str, Any]) -> None:
    length = 16384
    q, k = torch.randn(1, 2, length, 4), torch.randn(1, 1, length, 4)
    with Largest() as largest:
        attention_map(q, k, rows=rows, top_k=top_k, **options)
    assert largest.elements <= TILE, f"a tensor of {largest.elements} elements; the docstring promises {TILE} at most"


Q, K = r(B, H, SQ, D), r(B, HKV, SK, D)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((Q, K.float()), {}, TypeError, "k has dtype torch.float32 but q has"),
        ((Q, r(B, 3, SK, D)), {}, ValueError, "q has 4 heads, which is not a multiple of the 3 heads of k"),
        ((Q, K), {"rows": [SQ]}, ValueError, "rows holds 9; q has 9 positions"),
        ((Q, K), {"rows": [0.5]}, TypeError, "rows="),
        ((Q, K), {"rows": torch.tensor([1.0])}, TypeError, "rows must be a one-dimensional int32 or int64 tensor"),
        ((Q, K), {"top_k": 0}, ValueError, "top_k=0 must be between 1 and the 13"),
        ((Q, K), {"top_k": SK + 1}, ValueError, "top_k=14"),
        ((Q, K), {"top_k": True}, TypeError, "top_k must be an int, got bool"),
        ((Q, K), {"lse": r(B, H, SK)}, ValueError, "lse is torch.float64"),
        ((Q, K), {"lse": torch.zeros(B, H, SQ)}, ValueError, "lse is torch.float32"),
        ((Q, K), {"lse": 1.0}, TypeError, "lse must be a torch.Tensor, got float"),
        ((Q, K), {"causal": "left"}, ValueError, "causal='left'"),
        ((Q, K), {"window": (-1, 0)}, ValueError, "window="),
        ((Q, K), {"layout": "sbhd"}, ValueError, "layout='sbhd'"),
        ((Q, K), {"mask": torch.ones(SQ, SK).int()}, TypeError, "mask has dtype"),
    ],
)
def test_wrong_arguments(arguments: Any, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        attention_map(*arguments, **options)
