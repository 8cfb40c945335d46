"""tilewright: fused attention, softmax and feed-forward kernels, verified against float64 on any machine."""

from __future__ import annotations

from typing import Any

# The package of this name must be loaded before the function of this name is bound: a later first import would rebind
# it.
from . import backends as _backends_package  # noqa: F401
from . import nn
from .attention_map import attention_map
from .attention_record import record_attention
from .catalog import explain
from .config import use_backend
from .errors import BackendError
from .integrations.replace_sdpa import replace_sdpa
from .integrations.sdpa import scaled_dot_product_attention
from .ops.attention import attention
from .ops.ffn import ffn
from .ops.kvcache_attention import kvcache_attention
from .ops.softmax import log_softmax, softmax
from .ops.varlen_attention import varlen_attention
from .registry import backends

__all__ = [
    "BackendError",
    "attention",
    "attention_map",
    "backends",
    "explain",
    "ffn",
    "kvcache_attention",
    "log_softmax",
    "nn",
    "record_attention",
    "replace_sdpa",
    "scaled_dot_product_attention",
    "softmax",
    "use_backend",
    "varlen_attention",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # read only when asked for: importlib.metadata is slow to import
        from importlib.metadata import version

        return version("tilewright")
    raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
