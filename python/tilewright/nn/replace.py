"""Putting our attention into a model that exists, and taking it out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from .attention import MultiheadAttention, check_served, keep_from_being_bypassed


@dataclass
class Replaced:
    """What :func:`replace_attention` changed. ``undo()`` puts it back; as a context manager, at the end of the block.

    names: the replaced modules, by their names in the model.
    """

    names: list[str]
    _restore: list[Callable[[], Any]] = field(repr=False)

    def undo(self) -> None:
        """Restore the model. A second call does nothing."""
        while self._restore:
            self._restore.pop()()

    def __enter__(self) -> Replaced:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def replace_attention(model: nn.Module) -> Replaced:
    """Every ``torch.nn.MultiheadAttention`` in ``model`` computes with tilewright's kernels from now on.

    The modules stay the objects that they are, with their parameters, hooks and training mode, so optimizers and
    references to them stay valid: their class changes, and with it ``forward``. An ``nn.TransformerEncoder`` around
    them no longer packs padded batches into nested tensors, which these kernels do not take. Subclasses of
    ``nn.MultiheadAttention`` have a forward of their own and are left alone.

    >>> with tilewright.nn.replace_attention(model) as replaced:
    ...     out = model(x)                      # replaced.names says which modules; for good without the `with`

    Raises:
        TypeError: ``model`` is no module.
        ValueError: there is nothing to replace, or a module in it cannot be served; nothing has been changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = {name: m for name, m in model.named_modules() if type(m) is nn.MultiheadAttention}
    if not found:
        raise ValueError("model has no torch.nn.MultiheadAttention (subclasses of it are left alone)")
    for name, module in found.items():
        check_served(module.head_dim, module.dropout, f"{name or 'model'}: ")
        if "forward" in vars(module):
            raise ValueError(f"{name or 'model'} has a forward of its own, which would go on being called")
    restore: list[Callable[[], Any]] = []
    for module in found.values():
        restore.append(keep_from_being_bypassed(module).remove)
        restore.append(partial(setattr, module, "__class__", nn.MultiheadAttention))
        module.__class__ = MultiheadAttention
    for outer in model.modules():
        if isinstance(outer, nn.TransformerEncoder) and outer.use_nested_tensor:
            outer.use_nested_tensor = False
            restore.append(partial(setattr, outer, "use_nested_tensor", True))
    return Replaced(list(found), restore)
