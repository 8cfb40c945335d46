"""Whether a layer may be left out, one op computing what it holds the weights of."""

from __future__ import annotations

from torch import nn


def is_plain(layer: nn.Module) -> bool:
    """Whether calling the layer does nothing besides its class's forward."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in layer.__dict__
        or "_call_impl" in layer.__dict__
    )


def check_plain(owner: nn.Module, *names: str) -> None:
    """Raise for a layer of ``owner`` that is not. Pruning and the older weight_norm are hooks as well."""
    for name in names:
        if not is_plain(getattr(owner, name)):
            raise ValueError(
                f"{name} of {type(owner).__name__} has hooks or a forward of its own, which would not be called: it "
                "holds weights of one fused op (register hooks on the whole module; torch.nn.utils.parametrize, and "
                "pruning that is made permanent, are served)"
            )
