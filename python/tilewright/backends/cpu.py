"""C++ kernels for CPUs (csrc/cpu), in the compiled module ``_cpu``: float32, float16, bfloat16 and float64."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import Tensor

from ..errors import SettingError
from .compiled import Kernels, implementations

#: Names the instruction set that the kernels use instead of the best; read by the module when it is imported.
ISA = "TILEWRIGHT_CPU_ISA"


@functools.cache
def unavailable() -> str | None:
    try:
        importlib.import_module("tilewright._cpu")
    except ImportError as error:
        if ISA in str(error):  # a name that does not exist: not a machine without kernels
            raise SettingError(str(error)) from None
        return _why_missing(error)
    return None


def _why_missing(error: ImportError) -> str:
    from ..build_info import missing_reason

    return missing_reason("cpu") or f"the compiled module tilewright._cpu does not load: {error}"


@functools.cache
def kernels() -> Any:
    return importlib.import_module("tilewright._cpu")


def _run(name: str, params: Any, _tensor: Tensor) -> None:
    getattr(kernels(), name)(params)


def _unsupported(call: Any) -> str | None:
    first = call[0]
    return None if first.is_cpu else f"its tensors are on {first.device.type}; the cpu backend reads host memory only"


_ALL = implementations(Kernels(kernels, _run), _unsupported)
ATTENTION, VARLEN_ATTENTION = _ALL["attention"], _ALL["varlen_attention"]
KVCACHE_ATTENTION = _ALL["kvcache_attention"]
SOFTMAX, LOG_SOFTMAX, FFN = _ALL["softmax"], _ALL["log_softmax"], _ALL["ffn"]
