"""The masks that transformers models get: flags and a row of keys where they say everything, and the same ones."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny_transformers import LENGTH, assert_rounding, build, inputs
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    chunked_causal_mask_function,
    create_causal_mask,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from tilewright.integrations.transformers import attention_mask, register
from tilewright.integrations.transformers_mask import KEY_MASK_DTYPE, KeyMask

register()

BATCH = 3
#: Queries, their first position, keys, their first position: no cache, growing, static (empty and not), sliding.
PLACES = {
    "no cache": (9, 0, 9, 0),
    "one token after a cache": (1, 8, 9, 0),
    "a few tokens after a cache": (4, 8, 12, 0),
    "empty static cache": (5, 0, 16, 0),
    "static cache": (5, 4, 16, 0),
    "one token, static cache": (1, 4, 16, 0),
    "sliding cache": (5, 20, 8, 17),
    "static sliding cache, not full": (2, 1, 8, 0),
}


def allowed(mask: Tensor | None, queries: int, keys: int) -> Tensor:
    """Bool (B, 1, queries, keys): what the attention function makes of a mask."""
    if mask is None:
        return torch.ones(BATCH, 1, queries, keys, dtype=torch.bool)
    if mask.dtype != KEY_MASK_DTYPE:
        return mask.expand(BATCH, 1, queries, keys)
    seen, causal, window = KeyMask.unpack(mask)
    place = torch.arange(queries)[:, None] + (0 if causal == "top_left" else keys - queries)
    distance = place - torch.arange(keys)
    out = distance >= 0
    if window is not None:
        out &= distance < window
    out = out.expand(BATCH, 1, queries, keys)
    return out if seen is None else out & seen


def padded(side: str, total: int) -> Tensor | None:
    if side == "none":
        return None
    mask = torch.ones(BATCH, total, dtype=torch.bool)
    if side != "all":
        mask[1, : 2 if side == "left" else None] = False
        mask[2, slice(total - 2, None) if side == "right" else slice(0, 3)] = False
    return mask


@pytest.mark.parametrize(
    ("place", "side", "local"), list(itertools.product(PLACES, ("none", "all", "left", "right"), (None, 1, 3, 100)))
)
def test_says_what_transformers_says(place: str, side: str, local: int | None) -> None:
    queries, start, keys, first = PLACES[place]
    given: dict[str, Any] = {
        "batch_size": BATCH,
        "q_length": queries,
        "q_offset": start,
        "kv_length": keys,
        "kv_offset": first,
        "mask_function": causal_mask_function if local is None else sliding_window_causal_mask_function(local),
        "attention_mask": padded(side, start + queries),
        "local_size": local,
        "dtype": torch.float32,
        "device": "cpu",
    }
    theirs = sdpa_mask(**given, allow_is_causal_skip=False)
    assert torch.equal(allowed(attention_mask(**given), queries, keys), theirs.expand(BATCH, 1, queries, keys))
    tensor = attention_mask(**{**given, "q_offset": torch.tensor(start)})
    assert torch.equal(allowed(tensor, queries, keys), theirs.expand(BATCH, 1, queries, keys)), "offset in a tensor"


@pytest.mark.parametrize("side", ["none", "all", "left"])
@pytest.mark.parametrize("local", [None, 5])
def test_no_square_in_memory_and_no_keys_without_padding(side: str, local: int | None) -> None:
    mask = attention_mask(
        batch_size=BATCH,
        q_length=4000,
        kv_length=4000,
        mask_function=causal_mask_function if local is None else sliding_window_causal_mask_function(local),
        attention_mask=padded(side, 4000),
        local_size=local,
    )
    assert mask is not None
    assert mask.untyped_storage().nbytes() <= 2 * BATCH * 4000
    assert (KeyMask.unpack(mask).keys is None) == (side != "left"), "a mask of ones keeps kernels from their fast path"


def test_a_copy_that_lost_the_strides_says_the_same() -> None:
    mask = KeyMask(None, "top_left", 3).pack(BATCH, 6, "cpu")
    assert torch.equal(allowed(mask.contiguous(), 6, 6), allowed(mask, 6, 6))
    keys = torch.rand(BATCH, 1, 1, 6) > 0.5
    mask = KeyMask(keys, "bottom_right", None).pack(BATCH, 6, "cpu")
    assert torch.equal(allowed(mask.clone(), 4, 6), allowed(mask, 4, 6))


def test_chunks_and_overlays_are_drawn_in_full() -> None:
    chunks = chunked_causal_mask_function(4, torch.zeros(BATCH, dtype=torch.long))
    config = PreTrainedConfig(attention_chunk_size=4)
    given = {"batch_size": BATCH, "q_length": 9, "kv_length": 9, "mask_function": chunks, "local_size": 4}
    ours = attention_mask(**given, config=config)
    assert torch.equal(allowed(ours, 9, 9), sdpa_mask(**given, allow_is_causal_skip=False).expand(BATCH, 1, 9, 9))
    llama = LlamaConfig(attn_implementation="tilewright")
    both_ways = create_causal_mask(
        llama, torch.zeros(1, 6, 8), None, None, or_mask_function=lambda b, h, q, k: (q < 3) & (k < 3)
    )
    assert both_ways.dtype == torch.bool
    assert both_ways[0, 0, :3, :3].all() and not both_ways[0, 0, 3, 4]


def test_a_mask_for_other_keys_raises() -> None:
    model, given = build("llama"), inputs("llama")
    model.set_attn_implementation("tilewright")
    wrong = KeyMask(None, "bottom_right", None).pack(BATCH, LENGTH + 1, "cpu")
    with pytest.raises(ValueError, match=f"made for {LENGTH + 1} keys, but key has {LENGTH}"):
        model(input_ids=given["input_ids"], attention_mask=wrong)


def test_without_the_masks_padding_would_be_attended_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why register() registers two functions: transformers drops masks for a name without a mask function."""
    model, given = build("gpt2"), inputs("gpt2", "left")
    with torch.no_grad():
        theirs = model(**given).logits[given["attention_mask"].bool()]
        model.set_attn_implementation("tilewright")
        monkeypatch.delitem(type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping, "tilewright")
        wrong = model(**given).logits[given["attention_mask"].bool()]
        assert (wrong - theirs).abs().max() > 0.1, "transformers passes masks by itself now: registering is no trap"
        register()
        assert_rounding(model(**given).logits[given["attention_mask"].bool()], theirs, "registered again")
