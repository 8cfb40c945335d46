"""transformers' MLPs as one call of :func:`tilewright.ffn`: a subclass of each class that we can compute.

Weights are read where they are, and never moved (:mod:`.adjacent`). While somebody has a hook on all modules the layers
are called one by one, as transformers has them.

A fused class has the same name and the same parameters under the same names, so state dicts, optimizers, checkpoints
and copies of a model do not notice. It is made when first asked for, as an attribute of this module (where pickle finds
it), so that importing this needs no transformers.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import requested_backend
from ..nn._plain import is_plain
from ..ops._checks import autocasting
from ..ops.ffn import ffn
from .adjacent import as_one, notice_changes
from .subclasses import has_own_meaning

#: The classes of transformers.activations and torch.nn that we compute, by our name for them.
ACTIVATIONS = {
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "ReLU": "relu",
    "ReLUSquaredActivation": "relu2",
}
GATED = {"relu": "reglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "silu": "swiglu"}
PLAIN = {name: name for name in ("relu", "relu2", "gelu", "gelu_tanh", "silu")}


class Family(NamedTuple):
    """Classes whose MLP has one shape.

    classes: the modelling module of each class, under transformers.models. method: what the fused class overrides.
    parts: the layers that are not called any more when it runs fused, each with the class that it must have.
    activation: where the activation is. activations: those that we compute, by the plain one's name.
    """

    classes: dict[str, str]
    method: str
    forward: Callable[[Any, str, Tensor], Tensor]
    parts: dict[str, str]
    activation: str
    activations: dict[str, str]


def _dropout(layer: Any) -> float:
    return float(layer.p) if layer.training else 0.0


def _gpt2(mlp: Any, activation: str, x: Tensor) -> Tensor:
    # Conv1D holds (in, out); a transposed view is what ffn wants.
    fc, proj = mlp.c_fc, mlp.c_proj
    weights = (fc.weight.t(), proj.weight.t())
    return ffn(x, *weights, b_in=fc.bias, b_out=proj.bias, activation=activation, dropout_p=_dropout(mlp.dropout))


def _bert(layer: Any, activation: str, x: Tensor) -> Tensor:
    inner, output = layer.intermediate.dense, layer.output.dense
    # Under autocast the model adds its residual in float32, and a fused sum would be in the autocast dtype.
    fused = not autocasting(x)
    out = ffn(
        x,
        inner.weight,
        output.weight,
        b_in=inner.bias,
        b_out=output.bias,
        activation=activation,
        residual=x if fused else None,
        dropout_p=_dropout(layer.output.dropout),
    )
    normed: Tensor = layer.output.LayerNorm(out if fused else out + x)
    return normed


def _llama(mlp: Any, activation: str, x: Tensor) -> Tensor:
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    joined = as_one(gate.weight, up.weight)
    if joined is None and not (_copy_pays(x) or requested_backend(None)):
        apart: Tensor = down(mlp.act_fn(gate(x)) * up(x))
        return apart
    w_in = torch.cat((gate.weight, up.weight)) if joined is None else joined
    b_in = None if gate.bias is None else torch.cat((gate.bias, up.bias))
    out = ffn(x, w_in, down.weight, b_in=b_in, b_out=down.bias, activation=activation)
    if joined is not None:
        notice_changes(out, gate.weight, up.weight)
    return out


def _copy_pays(x: Tensor) -> bool:
    """Whether one call with a copy of gate's and up's weights is faster than torch's three products of what is there.

    On a CPU one row is not: float32 takes 1.2, bfloat16 1.5 times as long, but 2 rows 0.6 and 0.8 times (1024 by 2816
    features, EPYC). On a GPU, where this was not measured, a copy moves 4 C F elements, and a call spares 5 F a row.
    """
    features = x.shape[-1]
    return x.numel() >= features * (2 if x.device.type == "cpu" else features)


LINEAR, DROPOUT = "torch.nn.modules.linear.Linear", "torch.nn.modules.dropout.Dropout"
CONV1D = "transformers.pytorch_utils.Conv1D"
BERT = "transformers.models.bert.modeling_bert"

FAMILIES = {
    "gpt2": Family(
        {"GPT2MLP": "gpt2"},
        "forward",
        _gpt2,
        {"c_fc": CONV1D, "c_proj": CONV1D, "dropout": DROPOUT},
        "act",
        PLAIN,
    ),
    "bert": Family(
        {"BertLayer": "bert"},
        "feed_forward_chunk",
        _bert,
        {
            "intermediate": f"{BERT}.BertIntermediate",
            "intermediate.dense": LINEAR,
            "output": f"{BERT}.BertOutput",
            "output.dense": LINEAR,
            "output.dropout": DROPOUT,
        },
        "intermediate.intermediate_act_fn",
        PLAIN,
    ),
    "llama": Family(
        {
            "LlamaMLP": "llama",
            "MistralMLP": "mistral",
            "Qwen2MLP": "qwen2",
            "Qwen3MLP": "qwen3",
            "GemmaMLP": "gemma",
            "Gemma2MLP": "gemma2",
            "Gemma3MLP": "gemma3",
            "Olmo2MLP": "olmo2",
            "SmolLM3MLP": "smollm3",
        },
        "forward",
        _llama,
        {"gate_proj": LINEAR, "up_proj": LINEAR, "down_proj": LINEAR},
        "act_fn",
        GATED,
    ),
}


def modelling_module(folder: str) -> str:
    return f"transformers.models.{folder}.modeling_{folder}"


def is_fused(module: nn.Module) -> bool:
    return type(module).__module__ == __name__


def original_class(module_name: str, class_name: str) -> type | None:
    """transformers' own class, also while a fused one stands in its place; None in releases that do not have it."""
    try:
        found: Any = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError:
        return None
    if found is not None and found.__module__ == __name__:
        found = found.__mro__[1]
    original: type | None = found
    return original


@functools.cache
def fused_class(base: type, family: str) -> type:
    """The subclass of ``base`` whose MLP is one call; an instance of ``base`` can be turned into it."""
    row, parts = FAMILIES[family], _part_classes(family)
    original = getattr(base, row.method)

    def initialise(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)  # type: ignore[misc]
        check(self)

    def check(self: nn.Module) -> str:
        activation = _activation(self, row, parts)
        if activation is None:
            raise ValueError(f"{type(self).__name__} cannot run on tilewright.ffn: {why_not(self, family)}")
        return activation

    def run(self: nn.Module, x: Tensor) -> Tensor:
        # Checked at every call: LoRA, quantisation and offloading exchange layers of models that are already built.
        activation = check(self)
        _check_weights(self, parts)
        if not _hooks_on_all_modules():
            return row.forward(self, activation, x)
        if requested_backend(None):
            raise ValueError(
                f"{type(self).__name__} cannot run on tilewright.ffn: a hook on all modules is registered, which one "
                "fused call would leave out"
            )
        plain: Tensor = original(self, x)
        return plain

    members = {"__init__": initialise, row.method: run, "__module__": __name__, "__qualname__": base.__name__}
    return type(base.__name__, (base,), {**members, "__doc__": f"{base.__name__} on tilewright.ffn."})


def __getattr__(name: str) -> type:
    for family, row in FAMILIES.items():
        if name in row.classes:
            base = original_class(modelling_module(row.classes[name]), name)
            if base is not None:
                return fused_class(base, family)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def why_not(module: nn.Module, family: str) -> str | None:
    """Why a module cannot run fused: its activation, or a layer that is not the plain one any more."""
    row, parts = FAMILIES[family], _part_classes(family)
    if row.method in vars(module):
        return f"it has a {row.method} of its own, which would go on being called"
    for path, accepted in parts:
        layer = _follow(module, path)
        if type(layer) is not accepted:
            return f"its {path} is a {type(layer).__name__}; accepted is {accepted.__module__}.{accepted.__name__}"
        if not is_plain(layer):
            return f"its {path} has hooks or a forward of its own, which one fused call would leave out"
    given = _follow(module, row.activation)
    if isinstance(given, nn.Module) and not is_plain(given):
        return f"its {row.activation} has hooks or a forward of its own, which one fused call would leave out"
    if _activation(module, row, parts) is None:
        names = sorted(name for name, ours in ACTIVATIONS.items() if ours in row.activations)
        return f"its activation is {getattr(given, '__name__', type(given).__name__)}; accepted are {', '.join(names)}"
    return None


def _activation(module: nn.Module, row: Family, parts: tuple[tuple[str, Any], ...]) -> str | None:
    """The activation of the fused call, or None where :func:`why_not` has a reason."""
    for path, accepted in parts:
        layer = _follow(module, path)
        if type(layer) is not accepted or not is_plain(layer):
            return None
    layer = _follow(module, row.activation)
    kind = type(layer)
    if not kind.__module__.startswith(("transformers.activations", "torch.nn.modules.activation")):
        return None
    return row.activations.get(ACTIVATIONS.get(kind.__name__, "")) if is_plain(layer) else None


@functools.cache
def _part_classes(family: str) -> tuple[tuple[str, Any], ...]:
    rows = [(path, *name.rsplit(".", 1)) for path, name in FAMILIES[family].parts.items()]
    return tuple((path, getattr(importlib.import_module(module), name)) for path, module, name in rows)


def _follow(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _hooks_on_all_modules() -> bool:
    """Whether somebody watches every module, as torch's FlopCounterMode does: the layers are then called one by one."""
    hooks: Any = torch.nn.modules.module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )


def _check_weights(module: nn.Module, parts: tuple[tuple[str, Any], ...]) -> None:
    """Looked at when they are used: FSDP puts plain tensors in place of its own just before."""
    for path, _ in parts:
        weight = getattr(_follow(module, path), "weight", None)
        if has_own_meaning(weight):
            kind = type(weight).__name__
            raise ValueError(
                f"{type(module).__name__} cannot run on tilewright.ffn: its {path}.weight is a {kind}, which has "
                "matrix products of its own"
            )
