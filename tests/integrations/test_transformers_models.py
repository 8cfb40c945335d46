"""Models of transformers under attn_implementation="tilewright" against themselves under eager attention."""

from __future__ import annotations

import pytest
import torch
from tiny_transformers import (
    BUILD,
    CAUSAL,
    LENGTH,
    VOCAB,
    assert_rounding,
    assert_same_gradients,
    build,
    checkpoint,
    gradients,
    inputs,
    logits,
)

from tilewright.integrations.transformers import register

register()


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", BUILD)
def test_logits(name: str, side: str) -> None:
    model, given = build(name), inputs(name, side)
    with torch.no_grad():
        theirs = logits(model, given)
        model.set_attn_implementation("tilewright")
        assert_rounding(logits(model, given), theirs, name)


@pytest.mark.parametrize("name", BUILD)
def test_gradients(name: str) -> None:
    model, given = build(name), inputs(name, "left")
    theirs = gradients(model, given)
    model.set_attn_implementation("tilewright")
    assert_same_gradients(gradients(model, given), theirs)


@pytest.mark.parametrize("name", [*CAUSAL, "t5", "bert"])
def test_training_with_gradient_checkpointing(name: str) -> None:
    model, given = build(name).train(), inputs(name, "right")
    theirs = gradients(model, given)
    model.set_attn_implementation("tilewright")
    checkpoint(model)
    assert_same_gradients(gradients(model, given), theirs)


def test_dropout_is_for_training_only() -> None:
    model, given = build("llama"), inputs("llama")
    model.set_attn_implementation("tilewright")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with torch.no_grad():
        whole = logits(model, given)
        assert torch.equal(whole, logits(model, given))
        model.train()
        assert (logits(model, given) - logits(model, given)).abs().max() > 0.01


@pytest.mark.parametrize("name", CAUSAL[:-1])  # gpt-oss packs by bounds only: it does not show its mask position_ids
def test_packed_sequences(name: str) -> None:
    model = build(name)
    ids = torch.randint(3, VOCAB, (1, LENGTH))
    places = torch.cat([torch.arange(n) for n in (5, 1, LENGTH - 6)])[None]
    with torch.no_grad():
        theirs = model(input_ids=ids, position_ids=places, use_cache=False).logits  # a cache hides the packing
        alone = torch.cat([model(input_ids=part).logits for part in ids.split([5, 1, LENGTH - 6], 1)], 1)
        model.set_attn_implementation("tilewright")
        ours = model(input_ids=ids, position_ids=places, use_cache=False).logits
    assert_rounding(ours, theirs, name)
    assert_rounding(ours, alone, f"{name}, each sequence by itself")


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_packed_sequences_by_their_bounds(name: str) -> None:
    model = build(name)
    ids = torch.randint(3, VOCAB, (1, LENGTH))
    bounds = torch.tensor([0, 5, 6, LENGTH])
    given = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 7, "max_length_k": 7}
    with torch.no_grad():
        # Rotary positions are relative, so they may run on.
        alone = torch.cat([model(input_ids=part).logits for part in ids.split([5, 1, LENGTH - 6], 1)], 1)
        model.set_attn_implementation("tilewright")
        assert_rounding(model(input_ids=ids, **given).logits, alone, name)
        with pytest.raises(ValueError, match="attention_mask with padding was given with cu_seq_lens_q"):
            model(input_ids=ids, attention_mask=torch.arange(LENGTH)[None] > 2, **given)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_masks_of_four_dimensions_are_taken_as_they_are(name: str) -> None:
    model, given = build(name), inputs(name)
    allowed = torch.rand(3, 1, LENGTH, LENGTH) > 0.4
    allowed |= torch.eye(LENGTH, dtype=torch.bool)
    floats = torch.where(allowed, torch.randn(3, 1, LENGTH, LENGTH), torch.finfo(torch.float32).min)
    with torch.no_grad():
        theirs = model(input_ids=given["input_ids"], attention_mask=floats).logits
        model.set_attn_implementation("tilewright")
        assert_rounding(model(input_ids=given["input_ids"], attention_mask=floats).logits, theirs, "float")
        as_bool = model(input_ids=given["input_ids"], attention_mask=allowed).logits
        zeros = torch.where(allowed, 0.0, -torch.inf)
        assert_rounding(as_bool, model(input_ids=given["input_ids"], attention_mask=zeros).logits, "bool")


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "whisper", "vit", "gemma2"])
def test_attention_weights_are_refused(name: str) -> None:
    model, given = build(name), inputs(name)
    model.set_attn_implementation("tilewright")
    with pytest.raises(ValueError, match=r"output_attentions=True.*set_attn_implementation\('eager'\)"):
        model(**given, output_attentions=True)
    model(**given, output_hidden_states=True)
    model.set_attn_implementation("eager")
    assert model(**given, output_attentions=True)[-1] is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, given = build("mistral"), inputs("mistral", "left")
    with torch.no_grad():
        exact = logits(model, given)
        model.to(dtype)
        theirs = (logits(model, given).float() - exact).abs().max()
        model.set_attn_implementation("tilewright")
        ours = (logits(model, given).float() - exact).abs().max()
    assert ours <= 1.5 * theirs, f"error {ours:.3f} against eager's {theirs:.3f}, by the float32 model"


def test_autocast() -> None:
    model, given = build("gpt2"), inputs("gpt2", "left")
    with torch.no_grad():
        exact = logits(model, given)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = (logits(model, given) - exact).abs().max()
            model.set_attn_implementation("tilewright")
            ours = (logits(model, given) - exact).abs().max()
    assert ours <= 1.5 * theirs, f"error {ours:.3f} against eager's {theirs:.3f}, by the float32 model"
