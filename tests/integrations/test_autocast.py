"""Under torch.autocast every argument is what it is after the cast: of any float type where torch takes any."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tilewright as tw
from tilewright.integrations.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from tilewright.integrations.transformers import attention_forward

B, H, L, S, E = 2, 4, 5, 7, 8
HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *HALVES)
MASKS = (*FLOATS, torch.bool, None)


def mask_of(dtype: torch.dtype | None, *sizes: int) -> Tensor | None:
    if dtype is None:
        return None
    return torch.rand(sizes) > 0.3 if dtype == torch.bool else torch.randn(sizes).to(dtype)


def assert_close(ours: Tensor, theirs: Tensor, case: object) -> None:
    """As far apart as results of a half type are that are rounded in different places; torch casts the mask as well."""
    assert ours.dtype == theirs.dtype, case
    error = (ours.double() - theirs.double()).abs().max().item()
    assert error <= 0.03 * max(1.0, theirs.abs().max().item()), f"{case}: differs by {error}"


@pytest.mark.parametrize("dtype", HALVES)
def test_sdpa_takes_what_torch_takes(dtype: torch.dtype) -> None:
    for of_q, of_k, of_mask in itertools.product(FLOATS, FLOATS, MASKS):
        q, k, v = torch.randn(B, H, L, E).to(of_q), torch.randn(B, H, S, E).to(of_k), torch.randn(B, H, S, E).to(of_k)
        mask, case = mask_of(of_mask, H, L, S), (of_q, of_k, of_mask)
        results = []
        for sdpa in (F.scaled_dot_product_attention, tw.scaled_dot_product_attention):
            leaves = [t.clone().requires_grad_() for t in (q, k, v)]
            bias = mask
            if mask is not None and mask.is_floating_point():
                leaves.append(bias := mask.clone().requires_grad_())
            with torch.autocast("cpu", dtype):
                out = sdpa(*leaves[:3], attn_mask=bias)
            results.append((out, *torch.autograd.grad(out.float().square().sum(), leaves)))
        for mine, torchs in zip(*results[::-1], strict=True):
            assert_close(mine, torchs, case)
        with torch.autocast("cpu", dtype), tw.replace_sdpa() as counts:
            assert_close(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), results[0][0], case)
        assert counts.served == 1, f"{case}: {counts}"


@pytest.mark.parametrize("dtype", HALVES)
def test_sdpa_refuses_what_torch_refuses(dtype: torch.dtype) -> None:
    x, wide = torch.randn(B, H, L, E), torch.randn(B, H, L, E).double()
    for args, message in (
        ((wide, x, x), r"key has dtype .* but query has torch\.float64"),
        ((x, wide, wide), "key has dtype torch.float64"),
        ((x, x, wide), "value has dtype torch.float64"),
        ((x, x, x, torch.randn(L, L).double()), "attn_mask has dtype torch.float64"),
        ((x, x, x, torch.ones(L, L, dtype=torch.int64)), "attn_mask has dtype torch.int64"),
    ):
        with torch.autocast("cpu", dtype):
            with pytest.raises(RuntimeError):
                F.scaled_dot_product_attention(*args)
            with pytest.raises(TypeError, match=message):
                tw.scaled_dot_product_attention(*args)
    with pytest.raises(TypeError, match=r"attn_mask has dtype torch\.float16"):
        tw.scaled_dot_product_attention(x, x, x, torch.randn(L, L).half())


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_takes_what_torchs_takes(dtype: torch.dtype, need_weights: bool) -> None:
    theirs, ours = nn.MultiheadAttention(E, 2, batch_first=True), tw.nn.MultiheadAttention(E, 2, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    for of_x, of_mask, of_padding in itertools.product(FLOATS, MASKS, MASKS):
        q, k = torch.randn(B, L, E).to(of_x), torch.randn(B, S, E).to(of_x)
        given: dict[str, Any] = {"attn_mask": mask_of(of_mask, L, S), "key_padding_mask": mask_of(of_padding, B, S)}
        for name, mask in given.items():
            if mask is not None and mask.dtype == torch.bool:
                given[name] = mask.logical_and(torch.arange(S) > 0)  # what excludes all gives NaN in torch
        with torch.autocast("cpu", dtype):
            outs = [m(q, k, k, need_weights=need_weights, **given) for m in (ours, theirs)]
        assert_close(outs[0][0], outs[1][0], (of_x, of_mask, of_padding))
        if need_weights:
            assert_close(outs[0][1].to(dtype), outs[1][1].to(dtype), (of_x, of_mask, of_padding))


def test_multi_head_attention_refuses_float64_in_words() -> None:
    module, x = tw.nn.MultiheadAttention(E, 2), torch.randn(L, B, E)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(
            TypeError, match=r"query has dtype torch\.float64 but the module's weight has torch\.float32"
        ):
            module(x.double(), x, x)
        with pytest.raises(
            TypeError, match=r"query has dtype torch\.float32 but the module's weight has torch\.float64"
        ):
            module.double()(x, x, x)
        with pytest.raises(TypeError, match=r"attn_mask has dtype torch\.float64"):
            module.float()(x, x, x, attn_mask=torch.zeros(L, L).double())


def surfaces(of_q: torch.dtype, of_k: torch.dtype, of_rest: torch.dtype) -> dict[str, Callable[[], Any]]:
    q, k = torch.randn(B, L, H, E).to(of_q), torch.randn(B, S, 2, E).to(of_k)
    rest, slopes = torch.randn(B, H, L, S).to(of_rest), torch.rand(H).to(of_rest)
    heads_first = [t.transpose(1, 2) for t in (q, k, k)]
    bounds = [torch.arange(0, B * n + 1, n, dtype=torch.int32) for n in (L, S)]
    packed = q.flatten(0, 1), *[k.flatten(0, 1)] * 2
    pages, table = torch.randn(4, 4, 2, E).to(of_k), torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    tables = torch.randn(2, 16, E // 2).to(of_rest)
    module = nn.Module()

    def cached() -> Any:
        caches = torch.zeros(2, B, 16, 2, E, dtype=torch.get_autocast_dtype("cpu"))
        return flash_attn_with_kvcache(q, *caches, k[:, :2], k[:, :2], *tables, cache_seqlens=3)

    return {
        "flash_attn_func": lambda: flash_attn_func(q, k, k, alibi_slopes=slopes),
        "varlen": lambda: flash_attn_varlen_func(*packed, *bounds, L, S, alibi_slopes=slopes),
        "paged": lambda: flash_attn_varlen_func(packed[0], pages, pages, *bounds, L, S, block_table=table),
        "paged, dropout": lambda: flash_attn_varlen_func(
            packed[0], pages, pages, *bounds, L, S, dropout_p=0.5, block_table=table
        ),
        "cache": cached,
        "transformers, mask": lambda: attention_forward(module, *heads_first, rest)[0],
        "transformers, bias": lambda: attention_forward(module, *heads_first, None, position_bias=rest)[0],
        "transformers, sinks": lambda: attention_forward(module, *heads_first, None, s_aux=slopes)[0],
        "feed forward": lambda: tw.nn.FeedForward(E).to(of_k)(q, residual=q.to(of_rest)),
    }


@pytest.mark.parametrize("name", surfaces(*[torch.float32] * 3))
def test_every_surface_takes_mixed_types(name: str) -> None:
    for dtype, *types in itertools.product(HALVES, FLOATS, FLOATS, FLOATS):
        with torch.autocast("cpu", dtype):
            out = surfaces(*types)[name]()
        assert out.dtype == (torch.promote_types(types[2], dtype) if name == "feed forward" else dtype)
        assert out.isfinite().all()
