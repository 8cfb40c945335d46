"""Numbers are the same wherever they lie, and however torch says what they are.

The tensors of a case are laid out in memory in other ways, or are in other states that a tensor can be in; its results
have to be those of the same numbers in plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..catalog import OPS
from .case import Case
from .substitute import difference, results, tensors_of


def _strided(t: Tensor) -> Tensor:
    """Every third element of wider memory, in each dimension."""
    wide = t.new_full([3 * n for n in t.shape], 1)
    return wide[tuple(slice(1, None, 3) for _ in t.shape)].copy_(t)


def _padded(t: Tensor) -> Tensor:
    wide = t.new_full([n + 3 for n in t.shape], 1)
    return wide[tuple(slice(1, 1 + n) for n in t.shape)].copy_(t)


def _reversed(t: Tensor) -> Tensor:
    """The first dimension innermost in memory."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def _turned(t: Tensor) -> Tensor:
    """All dimensions but the last in reverse, as heads that stand behind positions."""
    order = (*reversed(range(t.dim() - 1)), t.dim() - 1)
    return t.permute(order).contiguous().permute(order)


def _expanded(t: Tensor) -> Tensor:
    """One number for all."""
    return t.flatten()[:1].view((1,) * t.dim()).expand(t.shape)


def _first_expanded(t: Tensor) -> Tensor:
    """The first of each dimension but the last for all, as a row that is shared."""
    return t[tuple(slice(0, 1) for _ in t.shape[:-1])].expand(t.shape)


def _windows(t: Tensor) -> Tensor:
    """Overlapping: the last two dimensions as frames of a signal."""
    if t.dim() < 2:
        return t
    frames, length = t.shape[-2:]
    signal = torch.cat((t[..., 0, :], t[..., 1:, -1]), -1)
    found = signal.unfold(-1, length, 1)
    assert found.shape[-2:] == (frames, length)
    return found


def _negated(t: Tensor) -> Tensor:
    return torch._neg_view(-t.contiguous())


def _conjugate(t: Tensor) -> Tensor:
    """The imaginary part of a conjugate: negated, and strided."""
    if t.dtype not in (torch.float32, torch.float64):
        return _negated(t)
    return torch.complex(t, -t).conj().imag


def _zero(t: Tensor) -> Tensor:
    return torch._efficientzerotensor(t.shape, dtype=t.dtype, device=t.device)


def _lazy(t: Tensor) -> Tensor:
    return torch._lazy_clone(t)


def _parameter(t: Tensor) -> Tensor:
    return torch.nn.Parameter(t.clone(), requires_grad=False) if t.is_floating_point() else t


#: What may be done to any tensor; to one that is not updated in place, whose last dimension may then be strided, and
#: whose elements may share memory; and to one of floats, whose values may change.
ANY = (_turned, _padded)
READ = (_strided, _reversed)
FLOATS = (_expanded, _first_expanded, _windows)
#: The same of states, which no kernel sees: the dispatcher makes plain tensors of such.
ANY_STATE = (_lazy,)
READ_STATE = (_parameter,)
FLOAT_STATES = (_negated, _conjugate, _zero)


def layouts_of(case: Case, tensor: str, t: Tensor, states: bool) -> list[Callable[[Tensor], Tensor]]:
    """With ``states``, also those; else strides alone."""
    found = [*ANY, *(ANY_STATE if states else ())]
    if tensor in OPS[case.op][0].mutates:  # a cache's last dimension is contiguous: nothing of it is copied
        return found
    found += [*READ, *(READ_STATE if states else ())]
    return [*found, *FLOATS, *(FLOAT_STATES if states else ())] if t.is_floating_point() else found


def problems(case: Case, backend: str, states: bool = True, seed: int = 0) -> Iterator[str]:
    """Where other layouts of its tensors change a result. In one round each tensor has one of its layouts, and in all
    rounds together every one of them."""
    tensors = tensors_of(case)
    choices = {name: layouts_of(case, name, t, states) for name, t in tensors.items()}
    for turn in range(max(len(layouts) for layouts in choices.values())):
        chosen = {name: layouts[(turn + i) % len(layouts)] for i, (name, layouts) in enumerate(choices.items())}
        found = results(case, backend, chosen, seed)
        plain = results(case, backend, {name: partial(_plain, layout) for name, layout in chosen.items()}, seed)
        for name, result in found.items():
            problem = difference(result, plain[name])
            if problem:
                lain = ", ".join(f"{n} {layout.__name__.strip('_')}" for n, layout in chosen.items())
                yield f"{name} {problem} with {lain}"


def _plain(layout: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """What the layout has made of it, in an ordinary contiguous tensor."""
    t = layout(t)
    return torch.zeros(t.shape, dtype=t.dtype, device=t.device) + t if t.is_floating_point() else t.contiguous()
