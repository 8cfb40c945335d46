"""What a query does not see has no part in its row, whatever it is: an infinity or NaN there changes nothing.

Elements of one tensor are replaced, of an argument or of an output's gradient. Results that the reference says do not
depend on them, because they are what they were, have to be what they were on a backend as well; and where it says that
there is no number, there is none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .case import Case
from .substitute import difference, results, tensors_of

VALUES = (math.nan, math.inf, -math.inf)
#: Of these an infinity makes scores of -inf, by which kernels know an excluded pair; every row of a head sees its sink.
VALUES_OF = {
    "q": VALUES[:1], "k": VALUES[:1], "k_cache": VALUES[:1], "alibi_slopes": VALUES[:1], "sinks": VALUES[2:],
}  # fmt: skip


def excluding(case: Case, tensors: dict[str, Tensor]) -> set[str]:
    """In which ways a case excludes what it excludes, and with which tensors: what ``covering`` is to cover."""
    spec = case.spec
    ways = {name for name in ("causal", "window", "dropout_p", "softcap", "new", "num_splits", "dim") if spec.get(name)}
    return set(tensors) | ways | ({"bool", "rows", "inf"} & set(str(spec.get("mask", "")).split()))


def problems(case: Case, backend: str, seed: int = 0, values: Sequence[float] = VALUES) -> Iterator[str]:
    """What an element or a row of any of the case's tensors of floats changes where it should not."""
    exact, before = results(case, "reference", seed=seed), results(case, backend, seed=seed)
    for tensor in [n for n, t in tensors_of(case).items() if t.is_floating_point()]:
        draw = random.Random(f"{case.id} {tensor} {seed}")
        for value in [v for v in VALUES_OF.get(tensor, VALUES) if any(v is w for w in values)]:
            position, whole = draw.random(), draw.random() < 0.5
            put = partial(_replaced, position=position, whole=whole, value=value)
            changed = [results(case, b, {tensor: put}, seed) for b in ("reference", backend)]
            for name, problem in _differences(exact, before, *changed):
                where = "the row" if whole else "the element"
                yield f"{name} {problem} when {tensor} holds {value} in {where} {position:.0%} from its beginning"


def _differences(
    exact: dict[str, Tensor], before: dict[str, Tensor], reference: dict[str, Tensor], found: dict[str, Tensor]
) -> Iterator[tuple[str, str]]:
    for name, t in found.items():
        same = (reference[name] == exact[name]) | (reference[name].isnan() & exact[name].isnan())
        problem = difference(t[same], before[name][same])
        if problem:
            yield name, problem
        was_number = before[name].isfinite() & (before[name] != 0)  # else excluded, which it may be still
        if (t.isfinite() & reference[name].isnan() & was_number).any():
            yield name, "is a number, where there is none,"


def _replaced(t: Tensor, position: float, whole: bool, value: float) -> Tensor:
    if t.numel() == 0:
        return t
    changed = t.clone(memory_format=torch.contiguous_format)
    rows = changed.view(-1, changed.shape[-1]) if changed.dim() else changed.view(1, 1)
    row, column = divmod(int(position * changed.numel()), rows.shape[1])
    rows[row, slice(None) if whole else column] = value
    return changed
