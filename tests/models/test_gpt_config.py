"""Reading config.json: what is served, and what is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright.models import GPTConfig
from tilewright.models.config import ACTIVATIONS


def test_defaults_are_gpt2_small_and_round_trip(tmp_path: Path) -> None:
    config = GPTConfig()
    assert (config.head_dim, config.inner_width, config.activation) == (64, 3072, "gelu_tanh")
    config.to_json(tmp_path / "config.json")
    assert GPTConfig.from_json(tmp_path) == config
    assert GPTConfig.from_dict({}) == config


def test_entries_without_a_meaning_here_are_ignored_and_aliases_read() -> None:
    config = GPTConfig.from_dict(
        {"n_ctx": 7, "task_specific_params": {"a": 1}, "hidden_size": 48, "num_hidden_layers": 2, "n_head": 4}
    )
    assert (config.n_embd, config.n_layer, config.head_dim) == (48, 2, 12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_mean_what_transformers_means(name: str) -> None:
    theirs = pytest.importorskip("transformers.activations").ACT2FN[name]
    x, identity = torch.linspace(-6, 6, 101, dtype=torch.float64).unsqueeze(1), torch.ones(1, 1, dtype=torch.float64)
    ours = tw.ffn(x, identity, identity, activation=ACTIVATIONS[name])
    torch.testing.assert_close(ours, theirs(x), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize(
    ("entries", "error", "words"),
    [
        (
            {"activation_function": "quick_gelu"},
            ValueError,
            "activation_function='quick_gelu' is not supported.*gelu_new",
        ),
        ({"model_type": "llama"}, ValueError, "model_type='llama'"),
        ({"add_cross_attention": True}, ValueError, "cross-attention"),
        ({"quantization_config": {"bits": 4}}, ValueError, "quantised"),
        ({"pruned_heads": {"0": [1]}}, ValueError, "pruned"),
        ({"n_embd": 10, "n_head": 3}, ValueError, "n_embd=10 must be a multiple of n_head=3"),
        ({"n_embd": 600, "n_head": 2}, ValueError, "head dims up to 256"),
        ({"n_layer": 0}, ValueError, "n_layer=0 must be at least 1"),
        ({"n_layer": "2"}, TypeError, "n_layer='2' must be an int"),
        ({"attn_pdrop": 1.0}, ValueError, "attn_pdrop=1.0"),
        ({"layer_norm_epsilon": 0.0}, ValueError, "layer_norm_epsilon"),
    ],
)
def test_refused(entries: dict[str, Any], error: type[Exception], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(error, match=words) as caught:
        GPTConfig.from_json(tmp_path)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ("[1]", "holds a list")])
def test_not_a_config(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        GPTConfig.from_json(tmp_path)
