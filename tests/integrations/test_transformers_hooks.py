"""What hangs on a layer that one call would leave out: it is refused in words, or the layers are called one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from test_transformers_patch import APPLY, fused
from test_transformers_weights import LAYERS
from tiny_transformers import assert_rounding, assert_same_gradients, build, gradients, inputs, logits
from torch import nn
from torch.nn.modules import module as every

import tilewright as tw
from tilewright.integrations.transformers import apply_to_llama

#: Everything inside a fused module that is not called any more.
INSIDE = [
    *LAYERS,
    ("gpt2", "transformer.h.0.mlp.act"),
    ("gpt2", "transformer.h.0.mlp.dropout"),
    ("bert", "bert.encoder.layer.0.intermediate"),
    ("bert", "bert.encoder.layer.0.intermediate.intermediate_act_fn"),
    ("bert", "bert.encoder.layer.0.output"),
    ("bert", "bert.encoder.layer.0.output.dropout"),
    ("llama", "model.layers.0.mlp.act_fn"),
]


def nothing(*_: Any) -> None:
    pass


HANG: dict[str, Callable[[nn.Module], object]] = {
    "forward hook": lambda m: m.register_forward_hook(nothing),
    "always called": lambda m: m.register_forward_hook(nothing, always_call=True),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(nothing, with_kwargs=True),
    "backward hook": lambda m: m.register_backward_hook(nothing),
    "full backward hook": lambda m: m.register_full_backward_hook(nothing),
    "full backward pre-hook": lambda m: m.register_full_backward_pre_hook(nothing),
    "forward": lambda m: setattr(m, "forward", m.forward),
    "_call_impl": lambda m: setattr(m, "_call_impl", m._call_impl),
}


@pytest.mark.parametrize("what", HANG)
@pytest.mark.parametrize(("name", "layer"), INSIDE)
def test_what_hangs_on_a_layer_is_refused(name: str, layer: str, what: str) -> None:
    model = build(name)
    HANG[what](model.get_submodule(layer))
    with pytest.raises(ValueError, match="has hooks or a forward of its own"):
        APPLY[name](model)
    assert not fused(model) and model.config._attn_implementation == "eager"


@pytest.mark.parametrize("what", HANG)
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_and_what_hangs_there_later(name: str, what: str) -> None:
    model, given = build(name), inputs(name)
    APPLY[name](model)
    for layer in [layer for n, layer in INSIDE if n == name][-1:]:
        HANG[what](model.get_submodule(layer))
    with pytest.raises(ValueError, match=r"cannot run on tilewright\.ffn: .* has hooks or a forward of its own"):
        model(**given)


MODULES = {
    "gpt2": ("transformer.h.0.mlp", "forward"),
    "bert": ("bert.encoder.layer.0", "feed_forward_chunk"),
    "llama": ("model.layers.0.mlp", "forward"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_whose_own_method_was_exchanged_is_refused(name: str) -> None:
    model = build(name)
    path, method = MODULES[name]
    module = model.get_submodule(path)
    setattr(module, method, getattr(module, method))
    with pytest.raises(ValueError, match=f"it has a {method} of its own, which would go on being called"):
        APPLY[name](model)
    assert not fused(model)


EVERYWHERE: dict[str, Callable[..., Any]] = {
    "forward": every.register_module_forward_hook,
    "forward pre": every.register_module_forward_pre_hook,
    "backward": every.register_module_full_backward_hook,
    "backward pre": every.register_module_full_backward_pre_hook,
}


@pytest.mark.filterwarnings("ignore:(Full backward hook is firing|For backward hooks to be called)")
@pytest.mark.parametrize("what", EVERYWHERE)
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_hooks_on_all_modules_see_the_layers(name: str, what: str) -> None:
    model, given = build(name), inputs(name)
    theirs = gradients(model, given)
    APPLY[name](model, attention=False)
    seen: list[nn.Module] = []

    def see(module: nn.Module, *_: Any) -> None:
        seen.append(module)

    handle = EVERYWHERE[what](see)
    try:
        assert_same_gradients(gradients(model, given), theirs)
        inside = [model.get_submodule(layer) for n, layer in LAYERS if n == name]
        assert all(layer in seen for layer in inside)
        with tw.use_backend("cpu"), pytest.raises(ValueError, match="a hook on all modules is registered"):
            model(**given)
    finally:
        handle.remove()
    seen.clear()
    assert_same_gradients(gradients(model, given), theirs)


REPLACE: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": lambda m: nn.utils.weight_norm(m, dim=None),
    "parametrized weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "orthogonal": lambda m: nn.utils.parametrizations.orthogonal(m),
    "prune": lambda m: nn.utils.prune.l1_unstructured(m, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("what", REPLACE)
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_weights_that_are_computed_are_refused(name: str, layer: str, what: str) -> None:
    model = build(name)
    REPLACE[what](model.get_submodule(layer))
    with pytest.raises(ValueError, match=r"has hooks or a forward of its own|is a Parametrized"):
        APPLY[name](model)


class Tenfold(torch.Tensor):
    """A weight that means ten times its numbers, as a quantised one means what its scales say."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            plain = [a.as_subclass(torch.Tensor) * 10 if isinstance(a, Tenfold) else a for a in args]
            return func(*plain, **(kwargs or {}))


def test_a_weight_with_products_of_its_own_is_refused() -> None:
    model, given = build("llama"), inputs("llama")
    apply_to_llama(model)
    with torch.no_grad():
        up = model.model.layers[0].mlp.up_proj
        values = up.weight.data
        del up.weight
        up.weight = values.as_subclass(Tenfold)
        with pytest.raises(ValueError, match=r"its up_proj\.weight is a Tenfold, which has matrix products of its own"):
            logits(model, given)
        up.weight = values
        logits(model, given)


def test_pruning_that_is_over_is_served() -> None:
    model, given = build("llama"), inputs("llama")
    up = model.model.layers[0].mlp.up_proj
    nn.utils.prune.l1_unstructured(up, "weight", 0.5)
    nn.utils.prune.remove(up, "weight")
    with torch.no_grad():
        theirs = logits(model, given)
        apply_to_llama(model)
        assert_rounding(logits(model, given), theirs, "pruned")
