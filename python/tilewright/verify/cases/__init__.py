"""The built-in cases: one list, walked by tests, benchmarks and the command line."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator

import torch

from ..case import DTYPES, Case
from . import attention, ffn, kvcache_attention, softmax, varlen_attention

_MODULES = (attention, varlen_attention, kvcache_attention, softmax, ffn)


def all_cases(dtypes: Iterable[torch.dtype] = tuple(DTYPES.values())) -> Iterator[Case]:
    """Every case of every op, op by op."""
    dtypes = tuple(dtypes)
    for module in _MODULES:
        for dtype in dtypes:
            yield from module.cases(dtype)


def select_cases(
    ops: Iterable[str] = (), dtypes: Iterable[torch.dtype] = tuple(DTYPES.values()), patterns: Iterable[str] = ()
) -> list[Case]:
    """The cases of these ops (none: of all) whose id matches one of the shell patterns (none: all).

    A pattern without a slash is matched against the case's name alone.
    """
    wanted, patterns = set(ops), tuple(patterns)
    return [
        case
        for case in all_cases(dtypes)
        if (not wanted or case.op in wanted) and (not patterns or any(_matches(case, p) for p in patterns))
    ]


def _matches(case: Case, pattern: str) -> bool:
    return fnmatch.fnmatchcase(case.id if "/" in pattern else case.name, pattern)
