"""The attention function itself: what it serves beyond what models show, what it refuses; names; torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import assert_rounding, build, inputs, logits
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

import tilewright as tw
from tilewright.integrations.transformers import attention_forward, register
from tilewright.integrations.transformers_mask import KeyMask

register()

B, H, HKV, S, T, D = 2, 4, 2, 5, 8, 8


class Layer(nn.Module):
    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal


def tensors(queries: int = S, keys: int = T) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, H, queries, D), torch.randn(B, HKV, keys, D), torch.randn(B, HKV, keys, 2 * D)


def expected(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    scores = (q @ k.repeat_interleave(H // HKV, 1).mT) * D**-0.5 + bias
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return (weights @ v.repeat_interleave(H // HKV, 1)).transpose(1, 2)


def distance(queries: int = S, keys: int = T) -> Tensor:
    return torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)


@pytest.mark.parametrize("queries", [1, S, T])
@pytest.mark.parametrize(("module_says", "argument"), [(True, None), (False, None), (True, False), (False, True)])
def test_causal_without_a_mask_is_bottom_right(queries: int, module_says: bool, argument: bool | None) -> None:
    q, k, v = tensors(queries)
    out, weights = attention_forward(Layer(module_says), q, k, v, None, is_causal=argument)
    causal = module_says if argument is None else argument
    allowed = distance(queries) >= 0 if causal else torch.ones(queries, T, dtype=torch.bool)
    assert_rounding(out, expected(q, k, v, allowed), "out")
    assert weights is None and out.is_contiguous() and out.shape == (B, queries, H, 2 * D)


@pytest.mark.parametrize("causal", [True, False])
def test_window_counts_the_token_itself(causal: bool) -> None:
    q, k, v = tensors()
    out, _ = attention_forward(Layer(causal), q, k, v, None, sliding_window=3)
    allowed = distance() < 3
    allowed &= distance() >= 0 if causal else distance() > -3
    assert_rounding(out, expected(q, k, v, allowed), "out")


@pytest.mark.parametrize("mask", ["none", "keys", "bool", "float"])
def test_position_bias_joins_every_mask_and_gets_its_gradient(mask: str) -> None:
    q, k, v = tensors()
    bias = torch.randn(1, H, S, T, requires_grad=True)
    keys = torch.rand(B, 1, 1, T) > 0.3
    keys[..., 0] = True
    causal = distance() >= 0
    given, allowed = {
        "none": (None, causal),
        "keys": (KeyMask(keys, "bottom_right", None).pack(B, T, "cpu"), causal & keys),
        "bool": (keys.expand(B, 1, S, T), keys),
        "float": (torch.zeros(B, 1, 1, T).masked_fill(~keys, torch.finfo(torch.float32).min), keys),
    }[mask]
    results = []
    for out in (
        attention_forward(Layer(True), q, k, v, given, position_bias=bias)[0],
        expected(q, k, v, allowed, bias),
    ):
        results.append((out, torch.autograd.grad(out.square().sum(), bias)[0]))
    (ours, our_grad), (theirs, their_grad) = results
    assert_rounding(ours, theirs, "out")
    assert_rounding(our_grad, their_grad, "gradient of position_bias")


def test_learned_queries_of_batch_1() -> None:
    q, k, v = tensors()
    out, _ = attention_forward(Layer(False), q[:1], k, v, None)
    assert_rounding(out, expected(q[:1], k, v, torch.ones(S, T, dtype=torch.bool)), "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sinks": torch.zeros(B, H, S, 1)}, "passes sinks"),
        ({"block_indices": torch.zeros(1)}, "passes block_indices"),
        ({"block_table": torch.zeros(1)}, "passes block_table"),
        ({"output_attentions": True}, "output_attentions=True"),
        ({"cu_seq_lens_q": torch.tensor([0, S])}, "need both"),
        ({"cu_seq_lens_q": torch.tensor([0, S]), "cu_seq_lens_k": torch.tensor([0, T])}, "with a batch of 2"),
        ({"attention_mask": torch.ones(B, 1, S, T, dtype=torch.int64)}, "mask has dtype"),
        ({"attention_mask": torch.ones(B, 1, S, T + 1, dtype=torch.bool)}, "mask of shape"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    given = {"attention_mask": None} | options
    with pytest.raises((ValueError, TypeError), match=message):
        attention_forward(Layer(True), *tensors(), **given)


def test_other_implementations_arguments_are_ignored() -> None:
    q, k, v = tensors()
    out, _ = attention_forward(Layer(True), q, k, v, None, position_ids=torch.arange(S), layer_idx=0, sinks=None)
    assert_rounding(out, expected(q, k, v, distance() >= 0), "out")


def test_deterministic_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.integrations import transformers_attention

    seen = []
    real = transformers_attention.attention
    monkeypatch.setattr(
        transformers_attention, "attention", lambda *a, **k: (seen.append(k["deterministic"]), real(*a, **k))[1]
    )
    attention_forward(Layer(True), *tensors(), None)
    attention_forward(Layer(True), *tensors(), None, deterministic=True)
    assert seen == [False, True]


@pytest.mark.parametrize("name", ["", "sdpa", "my_flash", "eager", "org/kernel", "flex_attention", "paged|mine"])
def test_names_that_transformers_keeps_for_itself(name: str) -> None:
    with pytest.raises(ValueError, match="must not be empty or contain"):
        register(name)


def test_registering() -> None:
    register()
    register("another_name")
    for interface in (AttentionInterface, AttentionMaskInterface):
        assert interface()["another_name"] is interface()["tilewright"]
    AttentionInterface.register("someone_elses", lambda *_: None)
    with pytest.raises(ValueError, match="already registered"):
        register("someone_elses")
    with pytest.raises(TypeError, match="name must be a str"):
        register(None)  # type: ignore[arg-type]


def test_a_backend_is_chosen_as_everywhere() -> None:
    model, given = build("llama"), inputs("llama", "left")
    with torch.no_grad():
        theirs = logits(model, given)
        model.set_attn_implementation("tilewright")
        with tw.use_backend("reference"):
            assert_rounding(logits(model, given), theirs, "reference")


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_compiled_in_one_graph(name: str) -> None:
    model, given = build(name), inputs(name, "left")
    with torch.no_grad():
        theirs = logits(model, given)
        model.set_attn_implementation("tilewright")
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        out = compiled(**given, use_cache=False).logits[given["attention_mask"].bool()]
    assert_rounding(out, theirs, name)
