"""Scaled dot-product attention of nothing: every size that may be 0, in every rank, against torch's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright as tw
from tilewright.nn import MultiheadAttention

Result = tuple[Tensor, list[Tensor | None]]


def attend(sdpa: Callable[..., Tensor], tensors: tuple[Tensor, ...], mask: Tensor | None, options: Any) -> Result:
    """The output, and the gradients of query, key, value and a float mask."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    if mask is not None and mask.is_floating_point():
        mask = mask.clone().requires_grad_()
    out = sdpa(*leaves, attn_mask=mask, **options)
    wanted = leaves if mask is None or mask.dtype == torch.bool else [*leaves, mask]
    return out.detach(), list(torch.autograd.grad(out.sum(), wanted, allow_unused=True))


def assert_same(ours: Result, theirs: Result, case: object) -> None:
    for mine, torchs in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        if mine is None or torchs is None:
            assert mine is None and torchs is None, f"{case}: only one has a gradient"
        else:
            torch.testing.assert_close(mine, torchs, equal_nan=True, msg=lambda text: f"{case}: {text}")


def masks(lead: tuple[int, ...], length: int, keys: int) -> Iterator[Tensor | None]:
    yield None
    if len(lead) < 4:
        yield torch.ones(length, keys, dtype=torch.bool)
    if len(lead) < 3:
        yield torch.ones(*lead, 1, keys, dtype=torch.bool)
    yield torch.zeros(*lead, length, keys)


def cases(rank: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None, dict[str, Any]]]:
    widths = list(itertools.product((0, 4), (0, 5))) if rank < 5 else [(0, 5), (4, 0), (4, 5)]
    sizes = [(length, keys, *width) for length, keys, width in itertools.product((0, 3), (0, 4), widths)]
    heads_kv = (0, 1, 2) if rank < 5 else (0,)
    for lead in itertools.product((0, 2), repeat=rank - 2):
        grouped = [((*lead[:-1], heads), True) for heads in heads_kv] if lead else []
        for (lead_kv, gqa), (length, keys, width, width_v) in itertools.product([(lead, False), *grouped], sizes):
            shapes = ((*lead, length, width), (*lead_kv, keys, width), (*lead_kv, keys, width_v))
            tensors = tuple(torch.randn(shape) for shape in shapes)
            for mask in masks(lead, length, keys):
                yield tensors, mask, {"enable_gqa": gqa}
            if rank < 5:
                yield tensors, None, {"enable_gqa": gqa, "is_causal": True}


@pytest.mark.parametrize("rank", range(2, 7))
def test_every_size_may_be_0(rank: int) -> None:
    seen = 0
    for tensors, mask, options in cases(rank):
        shapes = ([tuple(t.shape) for t in tensors], mask if mask is None else (mask.dtype, mask.shape), options)
        theirs = attend(F.scaled_dot_product_attention, tensors, mask, options)
        with tw.replace_sdpa() as counts:
            replaced = attend(F.scaled_dot_product_attention, tensors, mask, options)
        assert_same(replaced, theirs, ("replace_sdpa", shapes))
        if 0 in (tensors[0].shape[-1], tensors[2].shape[-1]):
            assert list(counts.refused) in (
                ["query has head dim 0; accepted are 1 to 256"],
                ["value has head dim 0; accepted are 1 to 256"],
            )
            with pytest.raises(ValueError, match=r"(query|value) has head dim 0; accepted are 1 to 256"):
                tw.scaled_dot_product_attention(*tensors, attn_mask=mask, **options)
        else:
            assert counts.served == 1
            assert_same(attend(tw.scaled_dot_product_attention, tensors, mask, options), theirs, shapes)
        seen += 1
    assert seen >= 64


def test_leading_dimensions_that_broadcast_against_0() -> None:
    leads = list(itertools.product((0, 1, 2), (0, 1)))
    for lead, (length, keys) in itertools.product(itertools.product(leads, repeat=3), ((0, 4), (3, 0), (3, 4))):
        tensors = tuple(
            torch.randn(*front, *back) for front, back in zip(lead, ((length, 4), (keys, 4), (keys, 5)), strict=True)
        )
        try:
            torch.broadcast_shapes(*lead)
        except RuntimeError:
            with pytest.raises(ValueError, match="do not broadcast with query's"):
                tw.scaled_dot_product_attention(*tensors)
            continue
        ours = attend(tw.scaled_dot_product_attention, tensors, None, {})
        assert_same(ours, attend(F.scaled_dot_product_attention, tensors, None, {}), (lead, length, keys))


def test_heads_that_fit_nothing() -> None:
    q = torch.randn(2, 3, 5, 8)
    for heads, heads_v in ((0, 3), (3, 0), (2, 2)):
        k, v = torch.randn(2, heads, 7, 8), torch.randn(2, heads_v, 7, 8)
        with pytest.raises(ValueError, match=f"query has 3 heads, which must be a multiple .* key \\({heads}\\)"):
            tw.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize("batched", [True, False])
def test_multi_head_attention_over_no_keys(batched: bool) -> None:
    for batch, length, keys in itertools.product((0, 2) if batched else (1,), (0, 3), (0, 4)):
        module = MultiheadAttention(8, 2, batch_first=True)
        q, k = torch.randn(batch, length, 8), torch.randn(batch, keys, 8)
        padding = torch.zeros(batch, keys, dtype=torch.bool)
        if not batched:
            q, k, padding = q[0], k[0], padding[0]
        for need_weights in (False, True):
            out, weights = module(q, k, k, key_padding_mask=padding, need_weights=need_weights)
            plain, _ = module(q, k, k, need_weights=need_weights)
            assert torch.equal(out, plain) and out.shape == q.shape
            assert weights is None or weights.shape == (*q.shape[:-1], keys)
