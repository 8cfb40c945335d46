"""The search: one kernel and key after the other, from the configuration in force to better ones next to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..bench.device import poison
from ..bench.timing import Timer, Timing, interleave
from ..triton_kernels import launch
from ..triton_kernels.candidates import neighbours
from ..triton_kernels.launch import Config
from . import workloads
from .workloads import Maker, Run, Workload

#: How far a candidate's result may be from the current configuration's: sums go in another order, and are rounded.
#: Of all elements together, and of one element beside the largest.
_FAR = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (5e-3, 0.05), torch.float16: (1e-3, 0.01)}

#: A gain below this is not worth a table's entry, whatever the spread of the samples says.
LEAST_GAIN = 0.02
ROUNDS = 3


class DeviceLost(RuntimeError):
    """After a candidate the current configuration does not run either: the process is of no more use."""


@dataclass(frozen=True)
class Trial:
    """A candidate. outcome: "faster", "not faster", "different" (its result) or "refused" (it raised)."""

    config: Config
    outcome: str
    reason: str = ""
    seconds: float | None = None
    current_seconds: float | None = None


@dataclass
class Result:
    """Of a kernel and key. status: "tuned", "kept" (nothing was faster), "not launched", "not reached" or "failed".

    before, after: the configuration that was in force, and the one to use. seconds: of a call with each, from the same
    samples.
    """

    kernel: str
    key: str
    before: Config
    after: Config
    status: str = "kept"
    reason: str = ""
    before_seconds: float | None = None
    after_seconds: float | None = None
    trials: list[Trial] = field(default_factory=list)


def pairs(architecture: str, ops: Iterable[str], kernels: Iterable[str], keys: Iterable[str]) -> list[tuple[str, str]]:
    """(kernel, key) of the table, of these ops, kernels and keys; an empty selection is all."""
    ops, kernels, wanted = set(ops), set(kernels), set(keys)
    return [
        (kernel, key)
        for op, table in launch.TABLES.items()
        if not ops or op in ops
        for kernel in table[architecture]
        if not kernels or kernel in kernels
        for key in workloads.keys(kernel, table[architecture][kernel], launch.known_keys(architecture, kernel))
        if not wanted or key in wanted
    ]


@dataclass(frozen=True)
class Search:
    """How to search. seconds: of timing, for each candidate. deadline: by time.monotonic(), when to stop altogether."""

    maker: Maker
    timer: Timer
    seconds: float = 0.3
    deadline: float = float("inf")
    neighbours: Callable[[str, Config], Iterator[Config]] = neighbours
    rounds: int = ROUNDS

    def over(self) -> bool:
        return time.monotonic() >= self.deadline


def tune(kernel: str, key: str, search: Search) -> Result:
    """Try the neighbours of the configuration in force, then those of the fastest, until none is faster."""
    before = launch.config(kernel, key, search.maker.device)
    result = Result(kernel, key, before, before)
    if search.over():
        return _ended(result, "not reached", "the budget was spent")
    torch.manual_seed(0)
    try:
        found = launching(kernel, key, search.maker)
        if isinstance(found, str):
            return _ended(result, "not launched", found)
        expected = found.timed(), found.checked()
    except Exception as error:  # the kernel's own failure, with the configuration in force
        return _ended(result, "failed", _in_words(error))
    seen = {_identity(before)}
    for _ in range(search.rounds):
        best: tuple[float, Trial] | None = None
        for candidate in search.neighbours(kernel, result.after):
            if _identity(candidate) in seen:
                continue
            if search.over():
                result.reason = "the budget was spent before all candidates had been tried"
                break
            seen.add(_identity(candidate))
            tried = _try(kernel, key, result.after, candidate, found, expected, search)
            result.trials.append(tried)
            if tried.outcome == "faster":
                assert tried.seconds is not None
                assert tried.current_seconds is not None
                ratio = tried.seconds / tried.current_seconds
                if best is None or ratio < best[0]:
                    best = ratio, tried
        if best is None:
            break
        result.after = best[1].config
        if search.over():
            break
    if result.after != before:
        times = _compare(kernel, key, before, result.after, found.timed, search)
        result.before_seconds, result.after_seconds = times[0].p50, times[1].p50
        # Each step was compared with the one before it; what counts is the whole way.
        if _faster(*times):
            result.status = "tuned"
        else:
            result.after, result.reason = before, "the gains of single steps did not add up"
    return result


def _ended(result: Result, status: str, reason: str) -> Result:
    result.status, result.reason = status, reason
    return result


def _identity(config: Config) -> tuple[Any, ...]:
    return (*sorted(config.blocks.items()), config.num_warps, config.num_stages)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _with(kernel: str, key: str, candidate: Config, run: Run) -> tuple[tuple[Tensor, ...], bool]:
    """The result with this configuration, and whether the kernel asked for it."""
    with launch.trial(kernel, key, candidate) as trial:
        return run(), trial.used


def launching(kernel: str, key: str, maker: Maker) -> Workload | str:
    """A call that launches ``kernel`` with ``key`` here, or why there is none, in words."""
    for aligned in (True, False):
        found = workloads.workload(kernel, key, replace(maker, aligned=aligned))
        if isinstance(found, str) or _with(kernel, key, launch.config(kernel, key, maker.device), found.timed)[1]:
            return found
    return "its call does not launch it with this key on this device"


def _try(
    kernel: str,
    key: str,
    current: Config,
    candidate: Config,
    found: Workload,
    expected: tuple[tuple[Tensor, ...], ...],
    search: Search,
) -> Trial:
    try:
        for run, right in zip((found.timed, found.checked), expected, strict=True):
            poison(right)
            problem = _difference(_with(kernel, key, candidate, run)[0], right)
            if problem:
                return Trial(candidate, "different", problem)
    except Exception as error:  # too many registers, too much shared memory, a block that does not compile, ...
        _check_device(kernel, key, current, candidate, found, error)
        return Trial(candidate, "refused", _in_words(error))
    old, new = _compare(kernel, key, current, candidate, found.timed, search)
    return Trial(candidate, "faster" if _faster(old, new) else "not faster", "", new.p50, old.p50)


def _check_device(kernel: str, key: str, current: Config, candidate: Config, found: Workload, error: Exception) -> None:
    try:
        _with(kernel, key, current, found.timed)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except Exception as again:
        raise DeviceLost(
            f"{kernel} with key {key!r}: after {describe(candidate)} ({_in_words(error)}) the device fails: "
            f"{_in_words(again)}"
        ) from error


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    for number, (f, e) in enumerate(zip(found, expected, strict=True)):
        far, furthest = _FAR[e.dtype]
        difference, size = (f.double() - e.double()).nan_to_num(nan=torch.inf), e.double()
        largest = float(size.abs().max()) if e.numel() else 0.0
        off = float(difference.norm()) > far * float(size.norm()), float(difference.abs().max()) > furthest * largest
        if any(off):
            return f"result {number} is not the current configuration's"
    return None


def _compare(
    kernel: str, key: str, current: Config, candidate: Config, run: Run, search: Search
) -> tuple[Timing, Timing]:
    functions = {
        "current": lambda: _with(kernel, key, current, run),
        "candidate": lambda: _with(kernel, key, candidate, run),
    }
    times = interleave(functions, search.seconds, at_least=7, timer=search.timer)
    return times["current"], times["candidate"]


def _faster(old: Timing, new: Timing) -> bool:
    """By more than the samples' spread."""
    noise = (old.p80 - old.p20) / 2 + (new.p80 - new.p20) / 2
    return old.p50 - new.p50 > max(LEAST_GAIN * old.p50, noise)


def describe(config: Config) -> str:
    """In the fewest words: M128 N64 K32, 8 warps, 3 stages."""
    blocks = " ".join(f"{name.removeprefix('BLOCK_').lower()}{value}" for name, value in config.blocks.items())
    return f"{blocks} w{config.num_warps} s{config.num_stages}"
