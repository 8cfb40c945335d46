"""The static table of implementations: one row per op and backend.

A row names where an implementation lives; nothing is imported before it is needed. Adding a backend to an op is one
kernel file and one row here; tests, benchmarks and the command line walk this table.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .config import BACKENDS

Forward = Callable[[Any], tuple[Tensor, ...]]
Backward = Callable[[Any, tuple[Tensor, ...], tuple[Tensor | None, ...], Sequence[bool]], tuple[Tensor | None, ...]]
Unsupported = Callable[[Any], str | None]


@dataclass(frozen=True)
class Implementation:
    """One op on one backend.

    forward(call)                            -> the op's outputs, in the contract's order and layout
    backward(call, outputs, grads, wanted)   -> a gradient, or None where not wanted, per differentiable input
    unsupported(call)                        -> why this call cannot be served, in words, or None when it can
    """

    forward: Forward
    backward: Backward | None
    unsupported: Unsupported


TABLE: dict[str, dict[str, str]] = {
    "attention": {
        "cuda": "tilewright.backends.cuda:ATTENTION",
        "triton": "tilewright.backends.triton_attention:ATTENTION",
        "cpu": "tilewright.backends.cpu:ATTENTION",
        "reference": "tilewright.backends.reference:ATTENTION",
    },
    "varlen_attention": {
        "cuda": "tilewright.backends.cuda:VARLEN_ATTENTION",
        "triton": "tilewright.backends.triton_attention:VARLEN_ATTENTION",
        "cpu": "tilewright.backends.cpu:VARLEN_ATTENTION",
        "reference": "tilewright.backends.reference:VARLEN_ATTENTION",
    },
    "kvcache_attention": {
        "cuda": "tilewright.backends.cuda:KVCACHE_ATTENTION",
        "triton": "tilewright.backends.triton_attention:KVCACHE_ATTENTION",
        "cpu": "tilewright.backends.cpu:KVCACHE_ATTENTION",
        "reference": "tilewright.backends.reference:KVCACHE_ATTENTION",
    },
    "softmax": {
        "cuda": "tilewright.backends.cuda:SOFTMAX",
        "cpu": "tilewright.backends.cpu:SOFTMAX",
        "triton": "tilewright.backends.triton_softmax:SOFTMAX",
        "reference": "tilewright.backends.reference:SOFTMAX",
    },
    "log_softmax": {
        "cuda": "tilewright.backends.cuda:LOG_SOFTMAX",
        "cpu": "tilewright.backends.cpu:LOG_SOFTMAX",
        "triton": "tilewright.backends.triton_softmax:LOG_SOFTMAX",
        "reference": "tilewright.backends.reference:LOG_SOFTMAX",
    },
    "ffn": {
        "cuda": "tilewright.backends.cuda:FFN",
        "cpu": "tilewright.backends.cpu:FFN",
        "reference": "tilewright.backends.reference:FFN",
        "triton": "tilewright.backends.triton_ffn:FFN",
    },
}


@functools.cache
def unavailable(backend: str) -> str | None:
    """Why ``backend`` cannot run anything on this machine, or None when it can."""
    module = importlib.import_module(f"tilewright.backends.{backend}")
    reason: str | None = module.unavailable()
    return reason


def home(backend: str) -> str:
    """The device type of the tensors that ``backend`` is checked and measured on."""
    module = importlib.import_module(f"tilewright.backends.{backend}")
    device: str = module.home() if hasattr(module, "home") else "cpu"
    return device


@functools.cache
def find(op_name: str, backend: str) -> Implementation | str:
    """The implementation in that row of the table, or why there is none on this machine."""
    reason = unavailable(backend)
    if reason is not None:
        return reason
    if backend not in TABLE[op_name]:
        return f"has no {op_name} kernel"
    module_name, attribute = TABLE[op_name][backend].split(":")
    implementation: Implementation = getattr(importlib.import_module(module_name), attribute)
    return implementation


def choose(op_name: str, backend: str, call: Any) -> Implementation | str:
    """The implementation, when it can serve ``call``, or why ``backend`` cannot."""
    found = find(op_name, backend)
    return found if isinstance(found, str) else found.unsupported(call) or found


def why_not(op_name: str, backend: str, call: Any) -> str | None:
    """Why ``backend`` cannot serve ``call``, or None when it can."""
    found = choose(op_name, backend, call)
    return found if isinstance(found, str) else None


def backends() -> dict[str, str | None]:
    """Every backend, and None if it can be used on this machine, or else the reason why it cannot."""
    return {backend: unavailable(backend) for backend in BACKENDS}
