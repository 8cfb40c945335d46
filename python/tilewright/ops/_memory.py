"""Where the elements of tensors are, and which tensors are more than their addresses say."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_PLAIN_TENSORS = (Tensor, torch.nn.Parameter)
_depth_of_modes, _tracing_state = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state


def must_see_operator(values: Any, indices: Any) -> bool:
    """True when something other than plain eager execution is watching, modes, torch.jit.trace or subclasses, and when
    a tensor is more than what its data pointer says. Of such, torch's dispatcher makes plain ones for an operator.

    Every call asks this: it is a dozen of torch's cheapest questions, and no function of ours.
    """
    if _depth_of_modes() > 0 or _tracing_state() is not None:
        return True
    try:
        for i in indices:
            t = values[i]
            if t is not None and (type(t) not in _PLAIN_TENSORS or t.is_neg() or not t.data_ptr()):
                return True
    except RuntimeError:  # a wrapper that a transform left behind
        return True
    return False


def without_dead_wrappers(op_name: str, call: Any) -> Any:
    """The call without wrappers of functorch transforms that have ended, of which a batch cannot be used."""
    functorch = torch._C._functorch
    wrapped = {
        field: t
        for field, t in zip(call._fields, call, strict=True)
        if isinstance(t, Tensor) and functorch.is_functorch_wrapped_tensor(t)
    }
    alive = {field: functorch.unwrap_if_dead(t) for field, t in wrapped.items()}
    for field, t in alive.items():
        if functorch.is_batchedtensor(t):
            raise ValueError(f"{op_name}: {field} is of torch.vmap's, and has left the function that it is inside of")
    return call._replace(**alive)


def _address(t: Tensor) -> int:
    """Where a tensor's elements are: 0 where there are none, as of zero tensors, functional ones, the meta device and
    storages that were resized away."""
    try:
        return t.data_ptr()
    except RuntimeError:  # a wrapper that a transform left behind
        return 0


def contiguous_like(t: Tensor) -> Tensor:
    """Uninitialised memory of its own for a tensor of t's shape: half the time of new_empty."""
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def check_memory(op_name: str, tensors: Sequence[tuple[str, Tensor | None]]) -> None:
    """Of what the dispatcher made of the tensors: kernels are handed addresses."""
    for name, t in tensors:
        if t is not None and t.numel() > 0 and t.device.type != "meta" and not _address(t):
            raise ValueError(
                f"{op_name}: {name} of shape {tuple(t.shape)} has no memory; its storage has "
                f"{t.untyped_storage().nbytes()} bytes (resized, or never allocated)"
            )


@functools.lru_cache(maxsize=1024)
def shares_elements(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two indices certainly have one place in memory: along an expanded dimension, or where one dimension's
    step is a number of another's that lies within it, as in frames that overlap."""
    steps = [(s, n) for n, s in zip(shape, strides, strict=True) if n > 1]
    return any(s == 0 for s, _ in steps) or any(
        wide % step == 0 and wide // step < n for (step, n), (wide, _) in itertools.permutations(steps, 2)
    )


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype have an element in common."""
    if a.numel() == 0 or b.numel() == 0 or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    # Sum of i_d * stride_d over the dimensions of one, less that of the other: is it the distance between the two?
    ranges: dict[int, tuple[int, int]] = {}
    for t, sign in ((a, 1), (b, -1)):
        for n, stride in zip(t.shape, t.stride(), strict=True):
            least, most = ranges.get(stride, (0, 0))
            ranges[stride] = (least, most + n - 1) if sign > 0 else (least - n + 1, most)
    steps = sorted(((s, *r) for s, r in ranges.items() if s > 0), reverse=True)
    return _reached(int(b.storage_offset()) - int(a.storage_offset()), steps)


def _reached(distance: int, steps: Sequence[tuple[int, int, int]]) -> bool:
    """Whether ``distance`` is a sum of numbers times steps, each number within its bounds. Where smaller steps stay
    within the larger ones, as in any view of an ordinary tensor, two numbers are left to try at each."""
    if not steps:
        return distance == 0
    (step, least, most), rest = steps[0], steps[1:]
    below, above = sum(s * low for s, low, _ in rest), sum(s * high for s, _, high in rest)
    first, last = -((above - distance) // step), (distance - below) // step
    return any(_reached(distance - n * step, rest) for n in range(max(first, least), min(last, most) + 1))
