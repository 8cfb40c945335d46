"""Incremental decoding: the same logits and tokens as computing everything again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tilewright.models import GPT, GPTConfig, KVCache


@pytest.fixture
def model(make_checkpoint: Callable[..., Any]) -> GPT:
    return GPT.from_pretrained(make_checkpoint()[0])


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 1, 4, 1]])
def test_logits_equal_uncached(model: GPT, chunks: list[int]) -> None:
    ids = torch.randint(61, (3, 12))
    cache = model.make_cache(3, 12)
    parts = [model(part, cache=cache).logits for part in ids.split(chunks, 1)]
    close(torch.cat(parts, 1), model(ids).logits)
    assert cache.seqlens.tolist() == [12] * 3
    assert cache.longest == 12


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_sequences_need_no_mask_later(model: GPT, side: str) -> None:
    lengths, steps = [3, 9, 6], 4
    rows = [torch.randint(61, (n + steps,)) for n in lengths]
    prompt, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.bool)
    for b, n in enumerate(lengths):
        place = slice(9 - n, 9) if side == "left" else slice(0, n)
        prompt[b, place], mask[b, place] = rows[b][:n], True
    cache = model.make_cache(3)
    first = model(prompt, attention_mask=mask, cache=cache, last_token_only=True).logits
    assert cache.seqlens.tolist() == lengths
    assert cache.longest == 9
    steps_given = torch.stack([row[-steps:] for row in rows])
    later = torch.cat([model(token, cache=cache).logits for token in steps_given.split(1, 1)], 1)
    for b, n in enumerate(lengths):
        alone = model(rows[b].unsqueeze(0)).logits[0]
        close(torch.cat([first[b], later[b]]), alone[n - 1 :])


@torch.no_grad()
def test_appending_stays_in_the_allocated_memory(model: GPT) -> None:
    cache = model.make_cache(2, 6)
    pointers = (cache.k.data_ptr(), cache.v.data_ptr(), cache.seqlens.data_ptr())
    assert cache.k.shape == (3, 2, 4, 6, 6)
    for _ in range(3):
        assert model(torch.zeros(2, 2, dtype=torch.int64), cache=cache).cache is cache
    assert pointers == (cache.k.data_ptr(), cache.v.data_ptr(), cache.seqlens.data_ptr())
    cache.reset()
    ids = torch.randint(61, (2, 6))
    close(model(ids, cache=cache).logits, model(ids).logits)


def test_refusals(model: GPT) -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"capacity=41.*n_positions=40"):
        model.make_cache(2, 41)
    with pytest.raises(ValueError, match="capacity=0 must be at least 1"):
        model.make_cache(2, 0)
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        KVCache(1, 0, 1, 1, 1)
    cache = model.make_cache(2, 5)
    with pytest.raises(ValueError, match="serves inference"):
        model(ids, cache=cache)
    with torch.no_grad():
        with pytest.raises(ValueError, match="serves inference"):
            model.train()(ids, cache=cache)
        model.eval()(ids, cache=cache)
        with pytest.raises(ValueError, match=r"cache is full.*holds 3 tokens, 3 more were given.*capacity is 5"):
            model(ids, cache=cache)
        with pytest.raises(ValueError, match="input_ids holds 1 sequences but the cache was made for 2"):
            model(ids[:1], cache=cache)


def test_refused_before_anything_is_written() -> None:
    model = GPT(GPTConfig(vocab_size=9, n_positions=8, n_embd=4, n_layer=1, n_head=1)).eval()
    cache = model.make_cache(1, 2)
    with torch.no_grad(), pytest.raises(ValueError, match="cache is full"):
        model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    assert not cache.k.any()
    assert cache.longest == 0
