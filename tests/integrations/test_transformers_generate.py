"""Generation under attn_implementation="tilewright": the tokens of eager attention, with every cache."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tiny_transformers import CAUSAL, LENGTH, TEXT_TO_TEXT, VOCAB, assert_rounding, build, inputs
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from tilewright.integrations.transformers import register

register()

#: What a model's forward calls its cache: renamed in a release of transformers 5.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
NEW = 8  # beyond the sliding window, which is 4


def generate(model: Any, given: dict[str, Tensor], **options: Any) -> Tensor:
    """The new tokens, and no early end."""
    torch.manual_seed(0)
    settings = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "disable_compile": True} | options
    out: Tensor = model.generate(**given, **settings)
    return out


def assert_same_tokens(name: str, given: dict[str, Tensor], **options: Any) -> None:
    model = build(name)
    theirs = generate(model, given, **options)
    model.set_attn_implementation("tilewright")
    ours = generate(model, given, **options)
    assert torch.equal(ours, theirs), f"{name} generates {ours.tolist()}, under eager attention {theirs.tolist()}"
    new = theirs[:, -NEW:]
    assert len(new.unique()) > len(new), "the model repeats itself, which shows nothing: give it other weights"


def prompt(name: str, side: str = "left") -> dict[str, Tensor]:
    given = inputs(name, side)
    return {k: v for k, v in given.items() if not k.startswith("decoder_")}


@pytest.mark.parametrize("cache", ["dynamic", "static", None])
@pytest.mark.parametrize("name", [*CAUSAL, *TEXT_TO_TEXT, "whisper"])
def test_greedy(name: str, cache: str | None) -> None:
    if cache == "static" and name == "whisper":
        pytest.skip("whisper's own generate leaves the choice of a static cache to compiled code")
    options = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    assert_same_tokens(name, prompt(name), **options)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5"])
def test_beam_search(name: str) -> None:
    assert_same_tokens(name, prompt(name), num_beams=3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_sampling_with_a_seed(name: str) -> None:
    assert_same_tokens(name, prompt(name), do_sample=True, temperature=0.8, top_k=5)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_candidates_found_in_the_prompt(name: str) -> None:
    ids = inputs(name)["input_ids"][:1, :6].repeat(1, 2)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert_same_tokens(name, given, prompt_lookup_num_tokens=3)


def test_assisted_generation() -> None:
    model, assistant = build("llama"), build("llama")
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # right often, not always
    ids = torch.randint(3, VOCAB, (1, LENGTH))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    theirs = generate(model, given)
    for part in (model, assistant):
        part.set_attn_implementation("tilewright")
    assert torch.equal(generate(model, given, assistant_model=assistant), theirs)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_prompt_in_pieces(name: str, cache: str) -> None:
    """Each piece comes after what is cached: not top-left, and nothing of a static cache's unwritten slots."""
    model, given = build(name), inputs(name, "left")
    ids, mask = given["input_ids"], given["attention_mask"]
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
        model.set_attn_implementation("tilewright")
        held: Any = DynamicCache(config=model.config)
        if cache == "static":
            held = StaticCache(config=model.config, max_cache_len=20)
        pieces, start = [], 0
        for length in (5, 6, 1, 1):
            end = start + length
            options = {"attention_mask": mask[:, :end], "position_ids": places[:, start:end]}
            pieces.append(model(input_ids=ids[:, start:end], **{CACHE: held}, use_cache=True, **options).logits)
            start = end
    keep = mask.bool()
    assert_rounding(torch.cat(pieces, 1)[keep], whole[keep], f"{name} in pieces, {cache} cache")
