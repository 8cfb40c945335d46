"""Triton kernels (triton_kernels/): float32, float16 and bfloat16, on CUDA devices or in Triton's interpreter."""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import chips

MINIMUM = (3, 6)
#: Of compute capability: asynchronous copies, and products of bfloat16.
OLDEST_CHIP = (8, 0)


@functools.cache
def unavailable() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"Triton is not installed: {error}"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MINIMUM:
        return f"Triton {triton.__version__} is too old: {MINIMUM[0]}.{MINIMUM[1]} or newer is needed"
    if not torch.cuda.is_available() and not takes_cpu_tensors():
        return (
            "torch sees no CUDA device; with TRITON_INTERPRET=1 in the environment the kernels run on CPU tensors, in "
            "Triton's interpreter, which is slow and meant for checking them"
        )
    return None


@functools.cache
def interpreted() -> bool:
    """Whether kernels run in the interpreter. Triton itself decides this when a kernel's file is imported."""
    if "TRITON_INTERPRET" not in os.environ:
        return False
    from ..triton_kernels.math import INTERPRETED

    return bool(INTERPRETED)


def takes_cpu_tensors() -> bool:
    """In the interpreter, or where a stand-in for a GPU launches kernels without computing (tilewright.stand_in)."""
    return chips.stand_in is not None or interpreted()


def home() -> str:
    return "cpu" if takes_cpu_tensors() else "cuda"


def on_device(t: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: this makes it the tensor's."""
    if t.is_cuda and t.device.index != torch.cuda.current_device():
        return torch.cuda.device(t.device)
    return nullcontext()


@functools.cache
def why_not_on(device: torch.device) -> str | None:
    """Why kernels cannot run on this GPU. Cached: asking for it takes as long as all other checks of a call."""
    if not torch.cuda.is_available():  # of a call that is only described
        return "its tensors are on cuda, and torch sees no CUDA device here"
    chip = chips.chip_of(device)
    if chip.capability >= OLDEST_CHIP:
        return None
    return (
        f"its tensors are on a {chip.name} of compute capability {'.'.join(map(str, chip.capability))}; Triton "
        f"kernels need {'.'.join(map(str, OLDEST_CHIP))} or later"
    )


def unsupported(call: Any) -> str | None:
    first = call[0]
    if first.is_cpu and not takes_cpu_tensors():
        return "its tensors are on cpu; set TRITON_INTERPRET=1 to run Triton kernels there, in Triton's interpreter"
    if not first.is_cpu and not first.is_cuda:
        return f"its tensors are on {first.device.type}; Triton kernels run on cuda"
    unfit = why_not_on(first.device) if first.is_cuda else None
    if unfit is not None:
        return unfit
    if first.dtype == torch.float64:
        return "its tensors are float64; Triton kernels take float32, float16 and bfloat16"
    return None
