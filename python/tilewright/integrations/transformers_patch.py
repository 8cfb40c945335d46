"""``apply_to_gpt2``, ``apply_to_bert``, ``apply_to_llama``: a model's, or all later models', attention and MLPs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .adjacent import pack as pack_weights
from .adjacent import unpack, why_not_pack
from .transformers_attention import NAME, register
from .transformers_mlp import FAMILIES, fused_class, is_fused, modelling_module, original_class, why_not


class Patch:
    """What was changed, and how to undo it: ``patch.undo()``, or ``with apply_to_gpt2(model): ...``."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Put back what was there before. A second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def apply_to_gpt2(model: nn.Module | None = None, *, attention: bool = True, mlp: bool = True) -> Patch:
    """Run GPT-2's attention and MLPs on tilewright: one model's, or with None those of all models built afterwards.

    MLPs are accepted with gelu_new (also as gelu_fast, gelu_accurate, gelu_pytorch_tanh), gelu, relu, relu2 or silu.
    Parameters keep their names, shapes and values; state dicts, copies, pickles and save_pretrained are as before.

    Args:
        model: any model that contains GPT2MLP modules. None changes the classes in transformers: models built
            until ``undo`` are fused, and stay so.
        attention: set attn_implementation="tilewright"; with None, as the default of GPT-2 models.
        mlp: run the MLPs on :func:`tilewright.ffn`.

    Returns:
        A handle that undoes all of it, also as a context manager.

    Raises:
        ValueError: nothing was asked for, the model has no such MLP, or one of them cannot be fused (another
            activation, a quantised or LoRA-wrapped layer, hooks); the message names the module, and nothing is changed.
            Layers that are exchanged later raise when they are called.
        ImportError: transformers is not installed.
    """
    return _apply("gpt2", model, attention, mlp)


def apply_to_bert(model: nn.Module | None = None, *, attention: bool = True, mlp: bool = True) -> Patch:
    """:func:`apply_to_gpt2` for BERT. Its layers' intermediate and output, with dropout and residual, become one call;
    the LayerNorm after it stays. A module with BertLayer is accepted, with the same activations."""
    return _apply("bert", model, attention, mlp)


def apply_to_llama(
    model: nn.Module | None = None, *, attention: bool = True, mlp: bool = True, pack: bool = False
) -> Patch:
    """:func:`apply_to_gpt2` for Llama and what has its gated MLP: Mistral, Qwen2, Qwen3, Gemma 1 to 3, OLMo 2 and
    SmolLM3. The gate's activation may be silu, gelu, gelu_pytorch_tanh or relu.

    The kernel reads the weights of gate and up as one matrix. Where they do not lie one behind the other, each call
    copies them, which autograd keeps until the backward; or, where that would take longer, as for a single row on a
    CPU, it makes torch's separate products, unless a backend was requested.

    Args:
        pack: move the weights of each gate and up next to each other now, so that no call copies them, and decoding is
            fused too. They stay parameters of their own, with their names and values, in one storage: tools that look
            at storages notice (``safetensors.torch.save_model`` refuses such a model; ``undo`` gives each its own).
            Only for whole models, and last: what moves them again (``to``, a cast, a deep copy, loading by assignment)
            separates them, and calls copy again. Addresses that were taken before (CUDA graphs) go stale.

    Raises:
        ValueError: as there; or with pack, a weight is in shared or pinned memory, a part of a larger storage, or held
            by another tensor as well. Nothing is changed then.
    """
    return _apply("llama", model, attention, mlp, pack)


def _apply(family: str, model: nn.Module | None, attention: bool, mlp: bool, pack: bool = False) -> Patch:
    if not attention and not mlp:
        raise ValueError("attention=False and mlp=False leave nothing to apply")
    if pack and (model is None or not mlp):
        raise ValueError("pack=True moves the weights of a model's MLPs: it needs the model, and mlp=True")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    register()
    patch = Patch()
    try:
        if model is None:
            _change_classes(patch, family, attention, mlp)
        else:
            _change_model(patch, model, family, attention, mlp, pack)
    except BaseException:
        patch.undo()
        raise
    return patch


def _change_model(patch: Patch, model: nn.Module, family: str, attention: bool, mlp: bool, pack: bool) -> None:
    classes = FAMILIES[family].classes
    found = [(name, m) for name, m in model.named_modules() if type(m).__name__ in classes and _is_ours(m, family)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no {', '.join(classes)}, which apply_to_{family} is for")
    if attention:
        _set_attention(patch, model)
    if not mlp:
        return
    plain = [(name, module) for name, module in found if not is_fused(module)]
    for name, module in plain:
        reason = why_not(module, family)
        if reason is not None:
            raise ValueError(f"{name or type(module).__name__} cannot run on tilewright.ffn: {reason}; pass mlp=False")
    weights: dict[str, Any] = {name: (m.gate_proj.weight, m.up_proj.weight) for name, m in found} if pack else {}
    for name, pair in weights.items():
        reason = why_not_pack(*pair)
        if reason is not None:
            raise ValueError(
                f"the weights of gate and up in {name or type(model).__name__} cannot be moved together: {reason}; "
                "without pack=True they are read where they are"
            )
    for pair in weights.values():
        pack_weights(*pair)
        patch._undo.append(partial(unpack, *pair))
    for _, module in plain:
        base: Any = type(module)
        _change_class(patch, module, fused_class(base, family))


def _is_ours(module: nn.Module, family: str) -> bool:
    expected = modelling_module(FAMILIES[family].classes[type(module).__name__])
    return is_fused(module) or type(module).__module__ == expected


def _change_class(patch: Patch, module: nn.Module, new: type) -> None:
    old = type(module)

    def back() -> None:
        if type(module) is new:
            module.__class__ = old

    module.__class__ = new
    patch._undo.append(back)


def _set_attention(patch: Patch, model: Any) -> None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "set_attn_implementation"):
        raise ValueError(
            f"{type(model).__name__} has no set_attn_implementation; give the PreTrainedModel, or attention=False"
        )
    parts = {key: getattr(config, key, None) for key in config.sub_configs}
    before = {"": config._attn_implementation}
    before |= {key: part._attn_implementation for key, part in parts.items() if part is not None}
    model.set_attn_implementation(NAME)
    if config._attn_implementation != NAME:  # transformers only logs that
        raise ValueError(f"{type(model).__name__} does not go through transformers' AttentionInterface")
    patch._undo.append(lambda: model.set_attn_implementation(before))


def _change_classes(patch: Patch, family: str, attention: bool, mlp: bool) -> None:
    for class_name, folder in FAMILIES[family].classes.items():
        base = original_class(modelling_module(folder), class_name)
        if base is None:
            continue
        module = importlib.import_module(modelling_module(folder))
        if mlp:
            _set(patch, module, class_name, fused_class(base, family))
        if attention:
            for models in [v for v in vars(module).values() if isinstance(v, type)]:
                if models.__module__ == module.__name__ and models.__name__.endswith("PreTrainedModel"):
                    _prefer_ours(patch, models)


def _prefer_ours(patch: Patch, models: Any) -> None:
    """Models of this class use our attention where neither the user nor their config asks for another."""
    inherited = models.get_correct_attn_implementation

    def get_correct_attn_implementation(self: Any, requested_attention: str | None, *args: Any, **kwargs: Any) -> Any:
        return inherited(self, NAME if requested_attention is None else requested_attention, *args, **kwargs)

    _set(patch, models, "get_correct_attn_implementation", get_correct_attn_implementation)


def _set(patch: Patch, owner: Any, name: str, value: Any) -> None:
    had, old = name in vars(owner), vars(owner).get(name)

    def back() -> None:
        if vars(owner).get(name) is value:
            setattr(owner, name, old) if had else delattr(owner, name)

    setattr(owner, name, value)
    patch._undo.append(back)
