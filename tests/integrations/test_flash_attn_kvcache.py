"""flash_attn_with_kvcache: output, lse and what is left in the cache, against plain float64 math."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from flash_attn_reference import assert_near, attend, rotate_positions
from torch import Tensor

from tilewright.integrations import flash_attn as fa

B, H, HKV, D, SMAX = 3, 4, 2, 16, 24
FILLED = torch.tensor([5, 0, 17], dtype=torch.int32)
PAGE = 6
TABLE = torch.tensor([[9, 3, 0, 7], [1, 11, 5, 2], [8, 4, 10, 6]], dtype=torch.int32)


def r(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def tables(rotary_dim: int = 8) -> tuple[Tensor, Tensor]:
    angles = torch.rand(SMAX + 2, rotary_dim // 2) * 2 * math.pi
    return angles.cos(), angles.sin()


def check(
    q: Tensor,
    contents: list[Tensor],
    caches: list[Tensor],
    read: Any,
    new: tuple[Tensor, Tensor] | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    interleaved: bool = True,
    filled: Tensor = FILLED,
    leftpad: Tensor | None = None,
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Call with ``caches``; ``contents`` is what they hold by sequence, (B, SMAX, Hkv, D); ``read`` reads them so."""
    before = [t.clone() for t in (q, *(new or ()))]
    local = options.get("causal", False) or options.get("window_size", (-1, -1)) != (-1, -1)
    contents = [t.double() for t in contents]
    queries = []
    for b, n in enumerate(filled.tolist()):
        positions = n + torch.arange(q.shape[1])
        if rotary is not None:
            queries.append(rotate_positions(q[b], *rotary, positions if local else positions * 0 + n, interleaved))
        else:
            queries.append(q[b].double())
        if new is not None:
            where = n + torch.arange(new[0].shape[1])
            k = new[0][b] if rotary is None else rotate_positions(new[0][b], *rotary, where, interleaved)
            contents[0][b, where], contents[1][b, where] = k.double(), new[1][b].double()
    more = {} if rotary is None else {"rotary_cos": rotary[0], "rotary_sin": rotary[1]}
    out, lse = fa.flash_attn_with_kvcache(
        q,
        *caches,
        *(new or ()),
        **more,
        cache_seqlens=filled,
        cache_leftpad=leftpad,
        rotary_interleaved=interleaved,
        return_softmax_lse=True,
        **(extra or {}),
        **options,
    )
    assert all(torch.equal(a, b) for a, b in zip((q, *(new or ())), before, strict=True)), "an input was changed"
    for name, cache, wanted in zip(("k_cache", "v_cache"), caches, contents, strict=True):
        assert_near(read(cache), wanted, f"what is in {name}")
    slopes = options.pop("alibi_slopes", None)
    for b, n in enumerate(filled.tolist()):
        total = n + (0 if new is None else new[0].shape[1])
        k, v = (t[b, :total] for t in contents)
        expected, expected_lse = attend(
            queries[b],
            k,
            v,
            first_key=0 if leftpad is None else int(leftpad[b]),
            alibi_slopes=None if slopes is None else slopes[b],
            **options,
        )
        assert_near(out[b], expected, f"out of sequence {b}", scale=4)
        assert_near(lse[b], expected_lse, f"softmax_lse of sequence {b}", scale=4)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (4, 1)},
    "softcap": {"softcap": 2.0, "causal": True, "window_size": (6, -1), "softmax_scale": 0.4},
    "alibi": {"alibi_slopes": torch.rand(B, H, generator=torch.manual_seed(1)), "causal": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("new", [0, 1, 3])
def test_contiguous_cache(new: int, options: str) -> None:
    caches = [r(B, SMAX, HKV, D) for _ in range(2)]
    appended = (r(B, new, HKV, D), r(B, new, HKV, D)) if new else None
    check(r(B, 3, H, D), caches, [c.clone() for c in caches], lambda c: c, appended, **OPTIONS[options])


@pytest.mark.parametrize("options", ["plain", "causal", "window"])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rotary_dim", [8, 16])
def test_rotary(rotary_dim: int, interleaved: bool, options: str) -> None:
    caches = [r(B, SMAX, HKV, D) for _ in range(2)]
    new = (r(B, 3, HKV, D), r(B, 3, HKV, D))
    check(
        r(B, 3, H, D),
        caches,
        [c.clone() for c in caches],
        lambda c: c,
        new,
        tables(rotary_dim),
        interleaved,
        **OPTIONS[options],
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("paged", [False, True])
def test_left_padding(paged: bool, options: str) -> None:
    leftpad = torch.tensor([2, 0, 16], dtype=torch.int32)
    new = (r(B, 2, HKV, D), r(B, 2, HKV, D))
    more = {"leftpad": leftpad, **OPTIONS[options]}
    if paged:
        pages = [r(12, PAGE, HKV, D) for _ in range(2)]
        check(r(B, 2, H, D), [by_page(p) for p in pages], pages, by_page, new, extra={"block_table": TABLE}, **more)
    else:
        caches = [r(B, SMAX, HKV, D) for _ in range(2)]
        check(r(B, 2, H, D), caches, [c.clone() for c in caches], lambda c: c, new, tables(), **more)


def by_page(pages: Tensor) -> Tensor:
    return pages[TABLE.long()].flatten(1, 2)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_splits", [0, 1, 3])
def test_paged_cache(num_splits: int, options: str) -> None:
    pages = [r(12, PAGE, HKV, D) for _ in range(2)]
    new = (r(B, 1, HKV, D), r(B, 1, HKV, D))
    extra = {"block_table": TABLE, "num_splits": num_splits}
    check(r(B, 1, H, D), [by_page(p) for p in pages], pages, by_page, new, tables(), extra=extra, **OPTIONS[options])


@pytest.mark.parametrize("options", OPTIONS)
def test_entries_are_picked_by_index(options: str) -> None:
    idx = torch.tensor([4, 0, 2], dtype=torch.int32)
    caches = [r(5, SMAX, HKV, D) for _ in range(2)]
    kept = [c[[1, 3]].clone() for c in caches]
    new = (r(B, 2, HKV, D), r(B, 2, HKV, D))
    extra = {"cache_batch_idx": idx}
    check(
        r(B, 2, H, D),
        [c[idx.long()] for c in caches],
        caches,
        lambda c: c[idx.long()],
        new,
        extra=extra,
        **OPTIONS[options],
    )
    assert all(torch.equal(c[[1, 3]], k) for c, k in zip(caches, kept, strict=True)), "another entry was changed"


def test_first_entries_without_an_index() -> None:
    caches = [r(5, SMAX, HKV, D) for _ in range(2)]
    check(r(B, 1, H, D), [c[:B].clone() for c in caches], caches, lambda c: c[:B], (r(B, 1, HKV, D), r(B, 1, HKV, D)))


def test_lengths_as_int_and_none() -> None:
    q, caches = r(B, 2, H, D), [r(B, SMAX, HKV, D) for _ in range(2)]
    of_int = fa.flash_attn_with_kvcache(q, *caches, cache_seqlens=7, causal=True)
    of_tensor = fa.flash_attn_with_kvcache(q, *caches, cache_seqlens=torch.full((B,), 7).int(), causal=True)
    assert torch.equal(of_int, of_tensor)
    whole = fa.flash_attn_with_kvcache(q, *caches)
    assert torch.equal(whole, fa.flash_attn_with_kvcache(q, *caches, cache_seqlens=SMAX))


def test_half_precision_rounds_a_rotated_key_once() -> None:
    caches = [r(B, SMAX, HKV, D, dtype=torch.bfloat16) for _ in range(2)]
    new = tuple(r(B, 1, HKV, D, dtype=torch.bfloat16) for _ in range(2))
    cos, sin = (t.bfloat16() for t in tables(16))
    fa.flash_attn_with_kvcache(
        r(B, 1, H, D, dtype=torch.bfloat16), *caches, *new, cos, sin, cache_seqlens=FILLED, causal=True
    )
    for b, n in enumerate(FILLED.tolist()):
        exact = rotate_positions(new[0][b], cos, sin, torch.tensor([n]), True)
        assert torch.equal(caches[0][b, n], exact.float().bfloat16()[0])


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": ({"q": r(B, H, D)}, ValueError, "q has shape"),
    "k alone": ({"k": r(B, 1, HKV, D)}, ValueError, "v is None"),
    "lengths missing": ({"k": r(B, 1, HKV, D), "v": r(B, 1, HKV, D), "cache_seqlens": None}, ValueError, "None"),
    "lengths too long": ({"cache_seqlens": FILLED + 8}, ValueError, r"cache_seqlens\[2\]=25"),
    "rotary without k": ({"rotary_cos": tables()[0], "rotary_sin": tables()[1]}, ValueError, "rotary_cos .* need k"),
    "index twice": ({"cache_batch_idx": FILLED, "block_table": TABLE}, ValueError, "cache_batch_idx and block_table"),
    "index out of range": ({"cache_batch_idx": FILLED}, ValueError, r"cache_batch_idx\[0\]=5 must be between 0 and 2"),
    "index of int64": ({"cache_batch_idx": FILLED.long()}, TypeError, "cache_batch_idx has dtype"),
    "leftpad": ({"cache_leftpad": FILLED - 1}, ValueError, r"cache_leftpad\[1\]=-1"),
    "leftpad's shape": ({"cache_leftpad": FILLED[:2]}, ValueError, "cache_leftpad of shape"),
    "small cache": ({"k_cache": r(2, SMAX, HKV, D), "v_cache": r(2, SMAX, HKV, D)}, ValueError, "batch size 2"),
    "splits": ({"num_splits": 1.0}, TypeError, "num_splits must be an int"),
    "gradient": ({"q": r(B, 1, H, D).requires_grad_()}, ValueError, "q requires a gradient"),
    "lse": ({"return_softmax_lse": 1}, TypeError, "return_softmax_lse must be a bool"),
}
WRONG_ROTARY: dict[str, tuple[dict[str, Any], str]] = {
    "one table": ({"rotary_sin": None}, "rotary_sin must be a torch.Tensor, got NoneType"),
    "short tables": (
        {"rotary_cos": tables()[0][:9], "rotary_sin": tables()[1][:9]},
        "fewer positions than the cache holds, 24",
    ),
    "wide tables": ({"rotary_cos": tables(20)[0], "rotary_sin": tables(20)[1]}, "at most the head dim of q, 16"),
    "k's head dim": ({"k": r(B, 2, HKV, 8)}, "k has head dim 8 but q has 16"),
    "interleaved": ({"rotary_interleaved": None}, "rotary_interleaved must be a bool"),
}


@pytest.mark.parametrize("case", [*WRONG, *WRONG_ROTARY])
def test_wrong_arguments_are_named_and_nothing_is_written(case: str) -> None:
    given = {"q": r(B, 1, H, D), "k_cache": r(B, SMAX, HKV, D), "v_cache": r(B, SMAX, HKV, D), "cache_seqlens": FILLED}
    error: type[Exception] | tuple[type[Exception], ...] = (TypeError, ValueError)
    if case in WRONG:
        more, error, message = WRONG[case]
    else:
        more, message = WRONG_ROTARY[case]
        given |= dict(zip(("rotary_cos", "rotary_sin"), tables(), strict=True))
        given |= {"k": r(B, 2, HKV, D), "v": r(B, 2, HKV, D)}
    given |= more
    before = given["k_cache"].clone()
    with pytest.raises(error, match=message):
        fa.flash_attn_with_kvcache(**given)
    assert torch.equal(given["k_cache"], before)
