"""Launch configurations: a fixed table per chip, and the user's own where `tilewright tune` has written one.

A configuration is chosen by the kernel's name and a short key of what changes its shape (head dim, bytes per element,
...), never by a sequence length, and never by measuring behind the user's back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import triton
import triton.language as tl

from tilewright.chips import chip_of
from tilewright.errors import BackendError

from . import attention_table, ffn_table, softmax_table, user_table
from .math import INTERPRETED


class Config(NamedTuple):
    """Block sizes by the names of the kernel's constants, warps, and stages of its software pipeline."""

    blocks: dict[str, int]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


#: Each op's own: {architecture: {kernel: {key: (blocks, num_warps, num_stages)}}}.
TABLES: dict[str, dict[str, dict[str, dict[str, user_table.Entry]]]] = {
    "attention": attention_table.TABLE,
    "softmax": softmax_table.TABLE,
    "ffn": ffn_table.TABLE,
}

#: Blocks that the key determines: with another value the kernel would compute something else.
FIXED: Mapping[str, tuple[str, ...]] = softmax_table.FIXED

#: Chips with a table of their own, by compute capability; others take the nearest lower one's.
ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100}


def architecture(device: torch.device) -> str:
    """The table that serves ``device``: "interpreter", or the newest architecture that the chip can run."""
    if INTERPRETED:
        return "interpreter"
    chip = chip_of(device)
    # Smaller chips of a generation (8.6, 8.9, 12.0) have less shared memory than its table was made for.
    if chip.shared_bytes < 160 * 1024:
        return "sm_80"
    major, minor = chip.capability
    fitting = [name for name, capability in ARCHITECTURES.items() if capability <= 10 * major + minor]
    return fitting[-1] if fitting else "sm_80"


def multiprocessors(device: torch.device) -> int:
    """What work is cut into pieces for; in the interpreter a number with which small tensors are cut as well."""
    return 4 if INTERPRETED else chip_of(device).multiprocessors


#: Of a grid: programs along y, and in all. Triton's launcher multiplies the numbers as 32-bit integers, and launches
#: nothing where the product overflows.
_MOST_ALONG_Y, _MOST_PROGRAMS = 65535, 2**31 - 1


def grid(x: int, y: int = 1) -> tuple[int, int]:
    """A launch's grid. What can be large is counted along x."""
    if y > _MOST_ALONG_Y or x * y > _MOST_PROGRAMS:
        raise BackendError(
            f"a grid of {x} x {y} programs is too large: a GPU takes {_MOST_PROGRAMS} in all and {_MOST_ALONG_Y} along "
            "the second dimension; split the batch"
        )
    return x, y


def number(value: float) -> Any:
    """A kernel's argument in float32, as a GPU takes it. In the interpreter it would stay Python's: of two numbers one
    kernel would then multiply doubles, where another, which has put one into a tensor before, rounds to float32."""
    if not INTERPRETED:
        return value
    import numpy as np
    from triton.runtime.interpreter import TensorHandle

    return tl.tensor(TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)


F = TypeVar("F", bound=Callable[..., object])
_keepers: list[Callable[[], None]] = []


def keeps_configurations(function: F) -> F:
    """For a cached function whose results depend on configurations: forget_configurations() empties it."""
    _keepers.append(function.cache_clear)  # type: ignore[attr-defined]
    return function


def forget_configurations() -> None:
    """After anything that configurations depend on has changed: the user's table, a trial, the chip."""
    for forget in _keepers:
        forget()


class Trial:
    """A configuration that is being tried out. used: whether a kernel has asked for it."""

    def __init__(self, kernel: str, key: str, candidate: Config) -> None:
        self.kernel, self.key, self.candidate, self.used = kernel, key, candidate, False


_trial: Trial | None = None


@contextmanager
def trial(kernel: str, key: str, candidate: Config) -> Iterator[Trial]:
    """Inside, ``kernel`` runs with ``candidate`` for ``key``. For `tilewright tune`, in one thread."""
    global _trial
    _trial = tried = Trial(kernel, key, candidate)
    forget_configurations()
    try:
        yield tried
    finally:
        _trial = None
        forget_configurations()


@keeps_configurations
@functools.cache
def config(kernel: str, key: str, device: torch.device) -> Config:
    """The configuration of ``kernel`` for ``key`` on ``device``."""
    chip = architecture(device)
    own = {k: row for (name, k), row in _user_rows(device).items() if name == kernel}
    if _trial is not None and _trial.kernel == kernel:
        own[_trial.key] = (*_trial.candidate,)
    rows = {**table_rows(chip, kernel), **own}
    chosen = key if key in rows else ""
    if _trial is not None and (_trial.kernel, _trial.key) == (kernel, chosen):
        _trial.used = True
    return Config(*rows[chosen])


def table_config(architecture: str, kernel: str, key: str) -> Config:
    """The built-in table's entry for ``key``, or its entry "" for every other key."""
    rows = table_rows(architecture, kernel)
    return Config(*(rows[key] if key in rows else rows[""]))


def table_rows(architecture: str, kernel: str) -> Mapping[str, user_table.Entry]:
    """The built-in table's entries for ``kernel``, by key."""
    return next(t[architecture][kernel] for t in TABLES.values() if kernel in t[architecture])


def known_keys(architecture: str, kernel: str) -> list[str]:
    """The keys that ``kernel`` may be asked for: its own, and where it has an entry for every other key, those of the
    other kernels of its op."""
    op = next(t[architecture] for t in TABLES.values() if kernel in t[architecture])
    own = op[kernel]
    return list(dict.fromkeys([*own, *(k for rows in op.values() for k in rows if "" in own and k)]))


def device_name(device: torch.device) -> str:
    """What a user's table calls it."""
    return "interpreter" if INTERPRETED else chip_of(device).name


@keeps_configurations
@functools.cache
def _user_rows(device: torch.device) -> dict[tuple[str, str], user_table.Entry]:
    """The user's table for this device, checked against the built-in one."""
    path = user_table.path_in_force()
    if path is None:
        return {}
    chip, name = architecture(device), device_name(device)
    found = user_table.entries(path, name, triton.__version__)
    for (kernel, key), (blocks, _, _) in found.items():
        problem = _problem(chip, kernel, key, blocks)
        if problem:
            raise user_table.TableError(path, f"for {name}, {kernel} with key {key!r}: {problem}")
    return found


def _problem(chip: str, kernel: str, key: str, blocks: dict[str, int]) -> str | None:
    kernels = [k for t in TABLES.values() for k in t[chip]]
    if kernel not in kernels:
        return f"there is no kernel of this name; there are {', '.join(kernels)}"
    if key not in known_keys(chip, kernel):
        return f"there is no such key; there are {', '.join(map(repr, known_keys(chip, kernel)))}"
    expected = table_config(chip, kernel, key).blocks
    if set(blocks) != set(expected):
        return f"blocks are {', '.join(blocks)} instead of {', '.join(expected)}"
    for name, value in blocks.items():
        if name in FIXED.get(kernel, ()) and value != expected[name]:
            return f"{name} is {value}, and has to be {expected[name]} for this key"
        if (name.startswith("BLOCK") or name in ("ROWS", "COLUMNS")) and value.bit_count() != 1:
            return f"{name} is {value}, and has to be a power of two"
    return None


def user_entries(device: torch.device) -> int:
    """How many entries of the user's table are in force on ``device``. Raises TableError where it cannot be used."""
    return len(_user_rows(device))
