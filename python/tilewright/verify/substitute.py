"""A case's results with some of its tensors exchanged for others: what the checks of layouts and of what lies outside
are made of. They walk every tensor by name, so that a new argument of an op is covered as soon as a case uses it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..catalog import OPS
from .case import Case, Maker
from .cases import CASES
from .run import _copy, _evaluate, _make_upstream
from .traps import one_thread

#: Of a result's dtype, and of its largest number or 1, whichever is more: sums may be taken in another order.
UNITS = 64.0


def tensors_of(case: Case) -> dict[str, Tensor]:
    """Arguments by name, and ``d`` + the output's name for the outputs' gradients."""
    maker = Maker(0, case.dtype)
    arguments = case.make(maker)
    upstream = _make_upstream(case, maker, arguments)
    return {n: t for n, t in arguments.items() if isinstance(t, Tensor)} | {f"d{n}": g for n, g in upstream.items()}


def _tensor_names(case: Case, tensors: dict[str, Tensor]) -> set[str]:
    return set(tensors)


@functools.cache
def covering(
    op: str, dtype: torch.dtype, has: Callable[[Case, dict[str, Tensor]], set[str]] = _tensor_names
) -> list[Case]:
    """Small cases that together have everything which any case of this op has: every tensor, or what ``has`` names."""
    cases = [(tensors_of(c), c) for c in CASES if c.op == op and c.dtype == dtype]
    cases.sort(key=lambda pair: sum(t.numel() for t in pair[0].values()))
    features = [(has(c, tensors), c) for tensors, c in cases if all(t.numel() > 0 for t in tensors.values())]
    missing = set().union(*(has(c, tensors) for tensors, c in cases))
    chosen: list[Case] = []
    for found, case in sorted(features, key=lambda pair: -len(pair[0])):
        if missing & found:
            missing -= found
            chosen.append(case)
    assert not missing, f"no case of {op} has {missing} and elements in its tensors"
    return chosen


#: By a tensor's name, what makes another of it.
Exchange = Mapping[str, Callable[[Tensor], Tensor]]


def results(case: Case, backend: str, exchange: Exchange | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Outputs, gradients, and what the op wrote in place; of the reference in float64."""
    maker = Maker(seed, case.dtype)
    arguments = case.make(maker)
    upstream = _make_upstream(case, maker, arguments)
    for tensor, change in (exchange or {}).items():
        group, name = (arguments, tensor) if tensor in arguments else (upstream, tensor[1:])
        group[name] = change(group[name])
    if backend == "reference":
        arguments = {n: _copy(v, torch.float64) for n, v in arguments.items()}
        upstream = {n: g.double() for n, g in upstream.items()}
    with one_thread():
        found = _evaluate(case, arguments, upstream, seed, backend)
    if found.problems:
        raise ValueError(f"{case.id}: {'; '.join(found.problems)}")
    return {**found.tensors, **{n: arguments[n] for n in OPS[case.op][0].mutates}}


def difference(after: Tensor, before: Tensor) -> str | None:
    """What is wrong with numbers that should be what they were, or None."""
    finite, dtype = before.isfinite(), before.dtype
    same = (after == before) | (after.isnan() & before.isnan())
    if not same[~finite].all():
        return "has another infinity, or none"
    after, before = after[finite].double(), before[finite].double()
    if after.numel() == 0:
        return None
    if not after.isfinite().all():
        return "is not finite"
    error = float((after - before).abs().max())
    return (
        f"changes by {error:.3g}"
        if error > UNITS * torch.finfo(dtype).eps * max(float(before.abs().max()), 1.0)
        else None
    )
