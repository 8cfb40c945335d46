"""tilewright.record_attention: the calls inside a model, and their maps."""

from __future__ import annotations

import pytest
import torch

import tilewright as tw
from tilewright.attention_map import attention_map
from tilewright.attention_record import record_attention


def test_every_call_is_recorded_with_its_options() -> None:
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    options = {
        "mask": torch.rand(5, 7) > 0.3,
        "causal": "bottom_right",
        "window": (3, None),
        "softcap": 2.0,
        "alibi_slopes": torch.rand(4),
        "sinks": torch.randn(4),
        "scale": 0.3,
    }
    with record_attention() as calls:
        out = tw.attention(q, k, k, **options)
        tw.scaled_dot_product_attention(q, q, q, is_causal=True)
    tw.attention(q, k, k)
    assert len(calls) == 2
    torch.testing.assert_close(out, tw.attention(q, k, k, **options), rtol=0, atol=0)
    torch.testing.assert_close(calls[0].map() @ k.repeat_interleave(2, 1), out)
    torch.testing.assert_close(calls[0].map(rows=[1]), attention_map(q, k, rows=[1], **options))
    assert calls[1].map(rows=[0], top_k=1).indices.unique().tolist() == [0]


def test_in_training_what_is_recorded_is_free_of_the_graph() -> None:
    from tilewright.models import GPT, GPTConfig

    model = GPT(GPTConfig(11, 8, 16, 3, 2))
    with record_attention() as calls:
        model(torch.arange(6)[None], targets=torch.arange(6)[None]).loss.backward()
    assert len(calls) == 3, "one call per layer"
    assert model.wte.weight.grad is not None
    for call in calls:
        assert call.causal == "bottom_right" and not call.q.requires_grad
        torch.testing.assert_close(call.map().sum(-1), torch.ones(1, 2, 6))


def test_calls_without_a_common_map_are_refused() -> None:
    q, cache = torch.randn(1, 2, 1, 8), torch.zeros(1, 2, 4, 8)
    with record_attention(), pytest.raises(NotImplementedError, match="called kvcache_attention"):
        tw.kvcache_attention(q, cache, cache)
    packed, starts = torch.randn(4, 2, 8), torch.tensor([0, 1, 4], dtype=torch.int32)
    with record_attention(), pytest.raises(NotImplementedError, match="called varlen_attention"):
        tw.varlen_attention(packed, packed, packed, starts, starts, 3, 3)
