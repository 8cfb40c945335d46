"""Tensors that say for themselves what torch's functions mean, and so what a matrix product or attention of them is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def overrides(kind: type) -> bool:
    """Whether the tensor subclass says for itself what torch's functions mean."""
    implementation = kind.__torch_function__  # type: ignore[attr-defined]
    inherited = getattr(implementation, "__func__", None) is Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
    return not inherited and implementation is not torch._C._disabled_torch_function_impl


def has_own_meaning(t: object) -> bool:
    """The same, or that it is made of other tensors, as a DTensor is."""
    if type(t) in (Tensor, Parameter):  # the usual case
        return False
    return isinstance(t, Tensor) and (overrides(type(t)) or is_traceable_wrapper_subclass(t))
