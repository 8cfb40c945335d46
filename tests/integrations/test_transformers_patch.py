"""apply_to_gpt2, apply_to_bert, apply_to_llama: the same results, and nothing else of a model changes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from tiny_transformers import (
    BUILD,
    DECODER,
    assert_rounding,
    assert_same_gradients,
    build,
    checkpoint,
    gradients,
    inputs,
    logits,
)
from torch import nn

from tilewright.integrations.transformers import apply_to_bert, apply_to_gpt2, apply_to_llama
from tilewright.integrations.transformers_mlp import FAMILIES, is_fused

APPLY: dict[str, Any] = {
    "gpt2": apply_to_gpt2,
    "bert": apply_to_bert,
    "llama": apply_to_llama,
    "qwen2": apply_to_llama,
    "mistral": apply_to_llama,
    "gemma2": apply_to_llama,
}


def fused(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_fused(module)]


@pytest.mark.parametrize("name", APPLY)
def test_logits_and_undo(name: str) -> None:
    model, given = build(name), inputs(name, "left")
    keys, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    with torch.no_grad():
        theirs = logits(model, given)
        with APPLY[name](model):
            assert len(fused(model)) == 2
            assert model.config._attn_implementation == "tilewright"
            assert_rounding(logits(model, given), theirs, name)
            assert list(model.state_dict()) == keys
        assert model.config._attn_implementation == "eager"
        assert [type(m) for m in model.modules()] == kinds
        assert torch.equal(logits(model, given), theirs)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", APPLY)
def test_gradients_are_under_the_same_names(name: str, checkpointing: bool) -> None:
    model, given = build(name).train(), inputs(name, "right")
    theirs = gradients(model, given)
    APPLY[name](model, attention=False)
    if checkpointing:
        checkpoint(model)
    assert_same_gradients(gradients(model, given), theirs)


def test_frozen_weights_get_no_gradient() -> None:
    model, given = build("llama"), inputs("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.requires_grad_(False)
    theirs = gradients(model, given)
    apply_to_llama(model)
    assert_same_gradients(gradients(model, given), theirs)


def test_bias_in_a_gated_mlp() -> None:
    torch.manual_seed(0)
    model = T.LlamaForCausalLM(T.LlamaConfig(**DECODER, mlp_bias=True)).eval()
    given = inputs("llama")
    theirs = gradients(model, given)
    apply_to_llama(model, attention=False)
    assert_same_gradients(gradients(model, given), theirs)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_dropout_only_in_training(name: str) -> None:
    model, given = build(name), inputs(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    APPLY[name](model, attention=False)
    with torch.no_grad():
        assert torch.equal(logits(model, given), logits(model, given))
        model.train()
        assert not torch.equal(logits(model, given), logits(model, given))


@pytest.mark.parametrize("name", APPLY)
def test_copies_pickles_and_checkpoints(name: str, tmp_path: Path) -> None:
    model, given = build(name), inputs(name)
    with torch.no_grad():
        theirs = logits(model, given)
        APPLY[name](model)
        logits(model, given)  # weights that were moved together are saved apart
        copied, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for other in (copied, loaded):
            assert_rounding(logits(other, given), theirs, name)
            for parameter in other.parameters():
                parameter.zero_()
        assert_rounding(logits(model, given), theirs, "a changed copy changes the original")
        model.save_pretrained(tmp_path)
        plain = type(model).from_pretrained(tmp_path)
        assert not fused(plain)
        assert_rounding(logits(plain.eval(), given), theirs, "from_pretrained")
        fresh = BUILD[name]().eval()
        fresh.load_state_dict(model.state_dict())
        assert_rounding(logits(fresh, given), theirs, "load_state_dict")


@pytest.mark.parametrize("name", APPLY)
def test_models_built_later(name: str, tmp_path: Path) -> None:
    before, given = build(name), inputs(name)
    before.save_pretrained(tmp_path)
    with torch.no_grad(), APPLY[name]():
        theirs = logits(before, given)
        assert not fused(before)
        later = type(before).from_pretrained(tmp_path).eval()
        assert len(fused(later)) == 2
        assert later.config._attn_implementation == "tilewright"
        assert_rounding(logits(later, given), theirs, name)
        chosen = type(before).from_pretrained(tmp_path, attn_implementation="eager")
        assert chosen.config._attn_implementation == "eager"
    after = type(before).from_pretrained(tmp_path)
    assert not fused(after)
    assert after.config._attn_implementation in ("sdpa", "eager")


def test_applying_twice_and_parts() -> None:
    model = build("llama")
    outer = apply_to_llama(model, attention=False)
    inner = apply_to_llama(model)
    assert len(fused(model)) == 2
    inner.undo()
    assert len(fused(model)) == 2 and model.config._attn_implementation == "eager"
    outer.undo()
    outer.undo()
    assert not fused(model)
    apply_to_llama(model, mlp=False)
    assert not fused(model) and model.config._attn_implementation == "tilewright"
    with pytest.raises(ValueError, match="leave nothing to apply"):
        apply_to_llama(model, attention=False, mlp=False)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module or None, got str"):
        apply_to_llama("llama")  # type: ignore[arg-type]


class Wrapped(nn.Module):
    """What LoRA does to a layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base


def test_refused_before_anything_changes() -> None:
    model = build("llama")
    mlp = model.model.layers[1].mlp
    mlp.up_proj = Wrapped(mlp.up_proj)
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.mlp cannot .* its up_proj is a Wrapped; accepted is .*Lin"
    ):
        apply_to_llama(model)
    assert not fused(model) and model.config._attn_implementation == "eager"
    mlp.up_proj = mlp.up_proj.base
    mlp.act_fn = nn.Tanh()
    with pytest.raises(ValueError, match=r"layers\.1\.mlp .* its activation is Tanh; accepted are .*SiLUActivation"):
        apply_to_llama(model)
    with pytest.raises(ValueError, match="LlamaForCausalLM has no GPT2MLP, which apply_to_gpt2 is for"):
        apply_to_gpt2(model)
    bert = build("bert")
    bert.bert.encoder.layer[0].output.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"encoder\.layer\.0 cannot .* its output has hooks"):
        apply_to_bert(bert)
    with apply_to_gpt2(attention=False), pytest.raises(ValueError, match=r"GPT2MLP cannot .* activation is Tanh"):
        T.GPT2Model(T.GPT2Config(n_embd=8, n_head=1, n_layer=1, activation_function="tanh"))


def test_layers_exchanged_afterwards_raise() -> None:
    model, given = build("gpt2"), inputs("gpt2")
    apply_to_gpt2(model)
    mlp = model.transformer.h[0].mlp
    mlp.c_fc = Wrapped(mlp.c_fc)
    with pytest.raises(ValueError, match=r"GPT2MLP cannot run on tilewright\.ffn: its c_fc is a Wrapped"):
        model(**given)


def test_autocast_keeps_the_residual_in_float32() -> None:
    model, given = build("bert"), inputs("bert")
    with torch.no_grad():
        exact = logits(model, given)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = (logits(model, given) - exact).abs().mean()
            apply_to_bert(model)
            sums = []
            norm = next(m for name, m in model.named_modules() if name.endswith("layer.0.output.LayerNorm"))
            norm.register_forward_pre_hook(lambda module, args: sums.append(args[0].dtype))
            ours = (logits(model, given) - exact).abs().mean()
    assert sums == [torch.float32], "the residual was added in the autocast dtype"
    # The mean: the largest of a few thousand roundings is chance, half as much again with one rounding moved.
    assert ours <= 1.1 * theirs, f"mean error {ours:.2e} against eager's {theirs:.2e}, by the float32 model"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_compiled_in_one_graph(name: str) -> None:
    model, given = build(name), inputs(name)
    with torch.no_grad():
        theirs = logits(model, given)
        APPLY[name](model)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_rounding(compiled(**given, use_cache=False).logits.flatten(0, 1), theirs, name)


def test_every_llama_like_class_has_the_mlp_that_is_fused() -> None:
    import inspect

    from tilewright.integrations.transformers_mlp import modelling_module, original_class

    body = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
    for name, folder in FAMILIES["llama"].classes.items():
        source = inspect.getsource(original_class(modelling_module(folder), name).forward)  # type: ignore[union-attr]
        assert body in source, f"{name} computes something else in this release of transformers: take it off the list"
