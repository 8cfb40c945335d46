"""tilewright.scaled_dot_product_attention against torch's own: values, gradients, errors and output strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tilewright as tw

B, H, L, S, E = 2, 3, 5, 7, 8


def r(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype)


def bshd(*shape: int) -> torch.Tensor:
    return r(*shape).transpose(1, 2)


def fused() -> list[torch.Tensor]:
    return [t.view(B, L, H, E).transpose(1, 2) for t in r(B, L, 3 * H * E).chunk(3, -1)]


BIAS = r(H, L, S)
BIAS[0, 1] = -torch.inf

AGREE: dict[str, tuple[list[torch.Tensor], dict[str, Any]]] = {
    "4-D": ([r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)], {}),
    "3-D, Ev != E": ([r(H, L, E), r(H, S, E), r(H, S, 4)], {}),
    "2-D": ([r(L, E), r(S, E), r(S, 4)], {}),
    "5-D": ([r(2, B, H, L, E), r(2, B, H, S, E), r(2, B, H, S, E)], {}),
    "ranks mixed": ([r(B, H, L, E), r(S, E), r(S, E)], {}),
    "keys broadcast": ([r(B, H, L, E), r(1, H, S, E), r(1, 1, S, E)], {}),
    "queries broadcast": ([r(1, H, L, E), r(B, H, S, E), r(B, 1, S, E)], {}),
    "causal, top left": ([r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)], {"is_causal": True}),
    "causal, more queries": ([r(B, H, S, E), r(B, H, L, E), r(B, H, L, E)], {"is_causal": True}),
    "bool mask": ([r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)], {"attn_mask": torch.rand(B, 1, L, S) > 0.4}),
    "bool mask, empty rows": (
        [r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)],
        {"attn_mask": torch.arange(L)[:, None] > 2},
    ),
    "float mask": ([r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)], {"attn_mask": BIAS}),
    "mask on 5-D": (
        [r(2, B, H, L, E), r(2, B, H, S, E), r(2, B, H, S, E)],
        {"attn_mask": torch.rand(2, B, 1, L, S) > 0.4},
    ),
    "mask on 3-D": ([r(H, L, E), r(H, S, E), r(H, S, E)], {"attn_mask": torch.rand(L, S) > 0.4}),
    "finfo.min mask": (
        [r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)],
        {"attn_mask": torch.full((L, S), torch.finfo(torch.float64).min, dtype=torch.float64)},
    ),
    "grouped queries": ([r(B, 6, L, E), r(B, 3, S, E), r(B, 3, S, E)], {"enable_gqa": True}),
    "one key head, 3-D": ([r(6, L, E), r(1, S, E), r(1, S, E)], {"enable_gqa": True}),
    "scale": ([r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)], {"scale": 0.3}),
    "scale 0": ([r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)], {"scale": 0.0}),
    "no keys": ([r(B, H, L, E), r(B, H, 0, E), r(B, H, 0, E)], {}),
    "no queries": ([r(B, H, 0, E), r(B, H, S, E), r(B, H, S, E)], {}),
    "no batch": ([r(0, H, L, E), r(0, H, S, E), r(0, H, S, E)], {}),
    "transposed BSHD": ([bshd(B, L, H, E), bshd(B, S, H, E), bshd(B, S, H, E)], {}),
    "transposed batch and heads": ([r(H, B, L, E).transpose(0, 1), r(B, H, S, E), r(B, H, S, E)], {}),
    "views of a fused QKV": (fused(), {"is_causal": True}),
    "everything dropped": ([r(B, H, L, E), r(B, H, S, E), r(B, H, S, E)], {"dropout_p": 1.0}),
}


@pytest.mark.parametrize("case", AGREE)
def test_values_gradients_and_strides_are_torchs(case: str) -> None:
    inputs, options = AGREE[case]
    results = []
    for sdpa in (F.scaled_dot_product_attention, tw.scaled_dot_product_attention):
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
        kwargs = dict(options)
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            kwargs["attn_mask"] = mask.clone().requires_grad_()
            leaves.append(kwargs["attn_mask"])
        out = sdpa(*leaves[:3], **kwargs)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        results.append((out, torch.autograd.grad((out * weights).sum(), leaves)))
    (theirs, their_grads), (ours, our_grads) = results
    torch.testing.assert_close(ours, theirs)
    assert ours.stride() == theirs.stride()
    for mine, torchs in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(mine, torchs)


Q, K = r(B, H, L, E), r(B, H, S, E)
RAISE: dict[str, tuple[tuple[torch.Tensor, ...], dict[str, Any], str]] = {
    "1-D": ((r(E), r(E), r(E)), {}, "query has shape"),
    "integers": ((torch.ones(2, 2, 2, 2, dtype=torch.int32),) * 3, {}, "query has dtype"),
    "dtypes mixed": ((Q, K.float(), K), {}, "key has dtype"),
    "heads without enable_gqa": ((r(B, 6, L, E), K, K), {}, "pass enable_gqa=True"),
    "int mask": ((Q, K, K), {"attn_mask": torch.ones(L, S, dtype=torch.int32)}, "attn_mask has dtype"),
    "mask shape": ((Q, K, K), {"attn_mask": torch.ones(L, 6, dtype=torch.bool)}, "attn_mask of shape"),
    "mask rank": (
        (r(H, L, E), r(H, S, E), r(H, S, E)),
        {"attn_mask": torch.ones(B, H, L, S, dtype=torch.bool)},
        "attn_mask of",
    ),
    "dropout": ((Q, K, K), {"dropout_p": 1.5}, "dropout_p=1.5"),
    "head dims": ((Q, r(B, H, S, 9), K), {}, "key has last dimension 9"),
}


@pytest.mark.parametrize("case", RAISE)
def test_raises_where_torch_raises(case: str) -> None:
    args, kwargs, message = RAISE[case]
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
        F.scaled_dot_product_attention(*args, **kwargs)
    with pytest.raises((ValueError, TypeError), match=message):
        tw.scaled_dot_product_attention(*args, **kwargs)


def test_value_of_another_length_raises() -> None:
    # torch 2.13 accepts this on the CPU; there is no right answer for it.
    with pytest.raises(ValueError, match="value has 6 positions but key has 7"):
        tw.scaled_dot_product_attention(Q, K, r(B, H, 6, E))


def test_mask_with_is_causal_raises_as_documented() -> None:
    with pytest.raises(ValueError, match="attn_mask and is_causal=True were both given"):
        tw.scaled_dot_product_attention(Q, K, K, attn_mask=torch.ones(L, S, dtype=torch.bool), is_causal=True)


def test_signature_is_torchs() -> None:
    import inspect

    names = list(inspect.signature(tw.scaled_dot_product_attention).parameters)
    assert names == ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]


def test_dropout_keeps_the_expectation() -> None:
    v = torch.ones(1, 1, 200, 4)
    out = tw.scaled_dot_product_attention(torch.zeros(1, 1, 50, 4), torch.zeros(1, 1, 200, 4), v, dropout_p=0.25)
    assert abs(out.mean().item() - 1.0) < 0.03
    assert out.std() > 0.01
