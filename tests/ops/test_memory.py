"""Which tensors share elements: held against every index of small ones."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

import tilewright as tw
from tilewright.ops._memory import overlap, shares_elements


def _places(t: Tensor) -> list[int]:
    return [
        int(t.storage_offset()) + sum(i * s for i, s in zip(index, t.stride(), strict=True))
        for index in itertools.product(*map(range, t.shape))
    ]


def _view(draw: random.Random, memory: Tensor) -> Tensor:
    """Of any strides, expanded and overlapping ones among them."""
    while True:
        sizes = [draw.randint(1, 4) for _ in range(draw.randint(1, 4))]
        strides = [draw.choice((0, 1, 1, 2, 3, 4, 6, 8, 12, 24, 48)) for _ in sizes]
        first, last = draw.randint(0, 100), sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        if first + last < memory.numel():
            return memory.as_strided(sizes, strides, first)


def test_overlap_is_what_the_places_of_all_elements_say() -> None:
    memory, draw = torch.zeros(200), random.Random(0)
    answers = set()
    for _ in range(2000):
        a, b = _view(draw, memory), _view(draw, memory)
        expected = bool(set(_places(a)) & set(_places(b)))
        assert overlap(a, b) == expected, (a.shape, a.stride(), a.storage_offset(), b.shape, b.stride())
        answers.add(expected)
    assert answers == {True, False}


def test_no_view_without_shared_elements_is_called_one_with() -> None:
    memory, draw = torch.zeros(200), random.Random(1)
    for _ in range(2000):
        a = _view(draw, memory)
        if shares_elements(a.shape, a.stride()):
            assert len(set(_places(a))) < a.numel()


NEW = torch.randn(1, 2, 2, 8)


@pytest.mark.parametrize("name", ["k_cache", "v_cache", "q", "k", "v"])
def test_what_is_read_while_a_cache_is_written_has_memory_of_its_own(name: str) -> None:
    """As torch's own functions have it that write in place."""
    k_cache, v_cache = torch.randn(2, 1, 2, 6, 8)
    given = {"q": NEW[:, :, :1], "k_cache": k_cache.clone(), "v_cache": v_cache.clone(), "k": NEW, "v": NEW}
    cache = "v_cache" if name == "k_cache" else "k_cache"
    shared = given[cache][:, :, 2:4] if name in "kvq" else given[cache]
    with pytest.raises(ValueError, match=rf"{name} and {cache}|{cache} and {name}"):
        tw.kvcache_attention(**{**given, name: shared}, cache_seqlens=3)
    if name in ("q", "k_cache", "v_cache"):  # which may share while nothing is written
        tw.kvcache_attention(given["q"], **dict.fromkeys(("k_cache", "v_cache"), given[cache]))


def test_caches_that_lie_between_each_other_are_written() -> None:
    both = torch.randn(1, 2, 6, 16)
    apart = [both[..., :8].clone(), both[..., 8:].clone()]
    found = tw.kvcache_attention(NEW, both[..., :8], both[..., 8:], k=NEW, v=NEW + 1, cache_seqlens=3)
    torch.testing.assert_close(found, tw.kvcache_attention(NEW, *apart, k=NEW, v=NEW + 1, cache_seqlens=3))
    assert torch.equal(both, torch.cat(apart, -1))
