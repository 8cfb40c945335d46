"""CUDA C++ kernels (csrc/cuda): float32, float16 and bfloat16, on CUDA devices in the compiled module ``_cuda``; with
TILEWRIGHT_CUDA_EMULATE=1 on CPU tensors in ``_cuda_emulated``, where the emulator runs the same sources."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from torch import Tensor

from .. import emulator
from ..errors import SettingError
from .compiled import Kernels, implementations

EMULATE = "TILEWRIGHT_CUDA_EMULATE"


@functools.cache
def emulated() -> bool:
    """Whether the kernels run in the emulator. Read once."""
    value = os.environ.get(EMULATE, "")
    if value not in ("", "0", "1"):
        raise SettingError(f"{EMULATE}={value!r}: accepted are 1 (run CUDA kernels in the emulator), 0 and unset")
    return value == "1"


def home() -> str:
    return "cpu" if emulated() else "cuda"


@functools.cache
def unavailable() -> str | None:
    """With the emulator asked for, this builds it if need be: nothing less tells whether it works."""
    from ..build_info import missing_reason

    if emulated():
        try:
            emulator.load()
        except ImportError as error:
            return str(error)
        return None
    try:
        importlib.import_module("tilewright._cuda")
    except ImportError as error:
        return missing_reason("cuda") or f"this installation has no CUDA C++ kernels: {error}"
    if not torch.cuda.is_available():
        without = " (this torch was built without CUDA)" if torch.version.cuda is None else ""
        return (
            f"torch sees no CUDA device{without}; with {EMULATE}=1 in the environment the kernels run on CPU tensors, "
            "in an emulator, which is slow and meant for checking them"
        )
    reason: str | None = kernels().unusable()
    return reason


def built_for() -> dict[str, str] | None:
    """Of the module for GPUs: "targets" (such as "sm_80 sm_90a compute_80") and "cuda_version"; None without it."""
    try:
        module = importlib.import_module("tilewright._cuda")
    except ImportError:
        return None
    return {"targets": module.targets(), "cuda_version": module.cuda_version()}


@functools.cache
def kernels() -> Any:
    return emulator.load() if emulated() else importlib.import_module("tilewright._cuda")


def _run(name: str, params: Any, tensor: Tensor) -> None:
    module = kernels()
    bytes_needed = getattr(module, f"{name}_workspace")(params)
    if bytes_needed > 0:
        workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=tensor.device)
        params.workspace = workspace.data_ptr()
    if emulated():
        getattr(module, name)(params)
        return
    with torch.cuda.device(tensor.device):
        getattr(module, name)(params, torch.cuda.current_stream().cuda_stream)


def _unsupported(call: Any) -> str | None:
    first = call[0]
    if emulated() and not first.is_cpu:
        return f"its tensors are on {first.device.type}; {EMULATE}=1 is set, and the emulator takes CPU tensors"
    if not emulated() and not first.is_cuda:
        return f"its tensors are on {first.device.type}; set {EMULATE}=1 to run CUDA kernels there, in an emulator"
    if first.dtype == torch.float64:
        return "its tensors are float64; CUDA kernels take float32, float16 and bfloat16"
    return None


_ALL = implementations(Kernels(kernels, _run), _unsupported)
ATTENTION, VARLEN_ATTENTION = _ALL["attention"], _ALL["varlen_attention"]
KVCACHE_ATTENTION = _ALL["kvcache_attention"]
FFN = _ALL["ffn"]
SOFTMAX, LOG_SOFTMAX = _ALL["softmax"], _ALL["log_softmax"]
