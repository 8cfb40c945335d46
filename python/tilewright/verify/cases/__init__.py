"""The built-in cases: one list, walked by tests, benchmarks and the command line."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import torch

from ..case import DTYPES, Case
from . import attention, ffn, kvcache_attention, softmax, varlen_attention

#: Every case of every op, op by op and dtype by dtype.
CASES: tuple[Case, ...] = tuple(
    case
    for module in (attention, varlen_attention, kvcache_attention, softmax, ffn)
    for dtype in DTYPES.values()
    for case in module.cases(dtype)
)


def find_case(name: str) -> Case:
    """By its id; LookupError if there is none."""
    found = next((case for case in CASES if case.id == name), None)
    if found is None:
        raise LookupError(f"there is no verification case {name!r}")
    return found


def select_cases(
    ops: Iterable[str] = (), dtypes: Iterable[torch.dtype] = (), patterns: Iterable[str] = ()
) -> list[Case]:
    """The cases of these ops and dtypes whose id or name matches one of the shell patterns. An empty list means all."""
    ops, dtypes, patterns = set(ops), set(dtypes), tuple(patterns)
    return [
        case
        for case in CASES
        if (not ops or case.op in ops)
        and (not dtypes or case.dtype in dtypes)
        and (not patterns or any(_matches(case, pattern) for pattern in patterns))
    ]


def _matches(case: Case, pattern: str) -> bool:
    return fnmatch.fnmatchcase(case.id if "/" in pattern else case.name, pattern)
