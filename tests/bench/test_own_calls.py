"""Calls of one's own, from text."""

from __future__ import annotations

import pytest

from tilewright.bench.items import own
from tilewright.bench.measure import Bench, run_item
from tilewright.registry import unavailable

BACKEND = "cpu" if unavailable("cpu") is None else "reference"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("attention:batch=2,heads=3,seqlen=9,head_dim=8,causal,both", "2 × 3 × 9 × 8, causal"),
        ("attention:heads=4,heads_kv=2,seqlen=9,head_dim=8,window=0,causal", "1 × 4/2 × 9 × 8, causal, window 0"),
        ("attention:batch=2,heads=3,seqlen=9,head_dim=8,lengths=9+4", "2 × 3 × 9 × 8, padded"),
        ("varlen_attention:lengths=10+3,heads=2,head_dim=8,backward", "2 sequences, 13 tokens, 2 × 8"),
        ("kvcache_attention:heads=4,heads_kv=2,seqlen_k=30,head_dim=8,page_size=8", "batch 1, 30 keys, 4/2 × 8, pages"),
        ("softmax:rows=5,width=30,dtype=bfloat16", "5 × 30"),
        ("ffn:rows=4,features=10,hidden=20,activation=swiglu,bias", "4 rows, 10 → 20, swiglu, bias"),
    ],
)
def test_a_call_is_made_and_measured(text: str, label: str) -> None:
    (item,) = own.parse(text)
    assert item.facts["label"].startswith(label)
    bench = Bench("cpu", (BACKEND,), "tiny", 0.0, True, (f"tilewright {BACKEND}",))
    (row,) = run_item(item, bench, {}, lambda message: None)
    assert row["status"] == "timed", row


def test_names_tell_calls_apart_and_modes_are_items() -> None:
    two = own.parse("softmax:rows=1,width=2,forward,both")
    assert [i.name for i in two] == ["softmax:rows=1,width=2 forward", "softmax:rows=1,width=2 both"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sofmax:rows=1", "one of attention"),
        ("softmax", "rows, width must be given"),
        ("softmax:rows=1,width=2,depth=3", "'depth' is not known"),
        ("softmax:rows=1,width=2,latency=3", "'latency' is not known"),
        ("softmax:rows=one,width=2", "rows=one; give a whole number"),
        ("softmax:rows=0,width=2", "rows=0; it must be 1 or more"),
        ("softmax:rows=1,width=2,dtype=int8", "choose one of float32"),
        ("ffn:rows=1,features=2,hidden=2,activation=tanh", "choose one of gelu_tanh"),
        ("attention:heads=3,heads_kv=2,seqlen=3,head_dim=3", "not a multiple"),
        ("attention:heads=3,seqlen=3,head_dim=300", "up to 256"),
        ("attention:heads=3,seqlen=3,head_dim=3,causal=yes", "give causal"),
        ("attention:batch=2,heads=3,seqlen=9,head_dim=8,lengths=9", "give 2 of them"),
        ("varlen_attention:lengths=3-4,heads=1,head_dim=1", "joined by +"),
        ("kvcache_attention:heads=1,seqlen_k=1,head_dim=1,both", "has no backward"),
    ],
)
def test_what_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=text.split(",")[0].replace("+", r"\+")) as raised:
        own.parse(text)
    assert told in str(raised.value)
