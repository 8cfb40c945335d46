"""What a query does not see has no part in its row, whatever it is: an infinity or NaN there changes nothing.

Elements of one tensor are replaced, of an argument or of an output's gradient. Results that the reference says do not
depend on them, because they are what they were, have to be what they were on a backend as well.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import torch
from torch import Tensor

from ..catalog import OPS
from .case import Case, Maker
from .run import _copy, _evaluate, _make_upstream
from .traps import one_thread

VALUES = (math.nan, math.inf, -math.inf)
#: Of these an infinity makes scores of -inf, by which kernels know an excluded pair; every row of a head sees its sink.
VALUES_OF = {"q": VALUES[:1], "k": VALUES[:1], "k_cache": VALUES[:1], "sinks": VALUES[2:]}
#: Of a result's dtype and largest number: sums may be taken in another order.
UNITS = 64.0


def tensors_of(case: Case, seed: int = 0) -> list[str]:
    """Every float tensor of the case: arguments by name, and ``d`` + the output's name for the outputs' gradients."""
    maker = Maker(seed, case.dtype)
    arguments = case.make(maker)
    names = [n for n, t in arguments.items() if isinstance(t, Tensor) and t.is_floating_point()]
    return names + [f"d{n}" for n in _make_upstream(case, maker, arguments)]


def problems(case: Case, backend: str, tensor: str, seed: int = 0) -> Iterator[str]:
    """What elements of ``tensor`` change, one or a row at a time, where they should not."""
    draw = random.Random(f"{case.id} {tensor} {seed}")
    exact, before = (_results(case, b, seed, tensor, None, 0.0) for b in ("reference", backend))
    for value in VALUES_OF.get(tensor, VALUES):
        at = draw.random(), draw.random() < 0.5
        reference, found = (_results(case, b, seed, tensor, at, value) for b in ("reference", backend))
        for name, t in found.items():
            same = reference[name] == exact[name]
            problem = _compare(t[same], before[name][same])
            if problem:
                yield f"{name} {problem} when {tensor} holds {value} at {at}"


def _results(
    case: Case, backend: str, seed: int, tensor: str, at: tuple[float, bool] | None, value: float
) -> dict[str, Tensor]:
    """Of a backend, and of the reference in float64. at: where to put ``value``, and whether to fill the row."""
    maker = Maker(seed, case.dtype)
    arguments = case.make(maker)
    upstream = _make_upstream(case, maker, arguments)
    group, name = (arguments, tensor) if tensor in arguments else (upstream, tensor[1:])
    if at is not None and group[name].numel() > 0:
        changed = group[name] = group[name].clone(memory_format=torch.contiguous_format)
        position, whole = at
        index = int(position * changed.numel())
        rows = changed.view(-1, changed.shape[-1]) if changed.dim() else changed.view(1, 1)
        row, column = divmod(index, rows.shape[1])
        rows[row, slice(None) if whole else column] = value
    if backend == "reference":
        arguments = {n: _copy(v, torch.float64) for n, v in arguments.items()}
        upstream = {n: g.double() for n, g in upstream.items()}
    with one_thread():
        found = _evaluate(case, arguments, upstream, seed, backend)
    if found.problems:
        raise ValueError(f"{case.id}: {'; '.join(found.problems)}")
    mutated = {n: arguments[n] for n in OPS[case.op][0].mutates}
    return {**found.tensors, **mutated}


def _compare(after: Tensor, before: Tensor) -> str | None:
    finite, dtype = before.isfinite(), before.dtype
    if not torch.equal(after[~finite], before[~finite]):
        return "has another infinity"
    after, before = after[finite].double(), before[finite].double()
    if not after.isfinite().all():
        return "is not finite"
    error = float((after - before).abs().max()) if after.numel() else 0.0
    limit = UNITS * torch.finfo(dtype).eps * float(before.abs().max()) if after.numel() else 0.0
    return f"changes by {error:.3g}" if error > limit else None
