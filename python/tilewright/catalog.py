"""Every op by name, and ``tilewright.explain``: which backend a call would run on, and why, without running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .dispatch import Explanation, explain_call
from .integrations import replace_sdpa
from .ops import attention, ffn, kvcache_attention, softmax, varlen_attention
from .ops._op import Op

#: Every op: its contract and its public function.
OPS: dict[str, tuple[Op, Callable[..., Any]]] = {
    "attention": (attention.OP, attention.attention),
    "varlen_attention": (varlen_attention.OP, varlen_attention.varlen_attention),
    "kvcache_attention": (kvcache_attention.OP, kvcache_attention.kvcache_attention),
    "softmax": (softmax.OP, softmax.softmax),
    "log_softmax": (softmax.LOG_OP, softmax.log_softmax),
    "ffn": (ffn.OP, ffn.ffn),
}

#: Drop-in functions that decide more than which backend an op runs on, and what explains them.
DROP_INS: dict[str, Callable[..., Explanation]] = {replace_sdpa.NAME: replace_sdpa.explain}


def explain(op_name: str, *args: Any, **kwargs: Any) -> Explanation:
    """The decision for ``tilewright.<op_name>(*args, **kwargs)``, with each backend's reason. Printable.

    The arguments are checked as the op checks them, and wrong ones raise the same exceptions. For
    "scaled_dot_product_attention" it is what :class:`tilewright.replace_sdpa` would do with the call, torch included,
    and what it has done so far.
    """
    if op_name in DROP_INS:
        return DROP_INS[op_name](*args, **kwargs)
    if op_name not in OPS:
        raise ValueError(f"op_name={op_name!r} is not an op; choose one of {', '.join(map(repr, (*OPS, *DROP_INS)))}")
    call, backend = canonical_call(op_name, *args, **kwargs)
    return explain_call(op_name, call, backend)


def canonical_call(op_name: str, *args: Any, **kwargs: Any) -> tuple[Any, str | None]:
    """The canonical call that the public function would make of these arguments, and the backend it was given."""
    op, function = OPS[op_name]
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    backend = arguments.pop("backend")
    arguments.pop("return_lse", None)
    return op.prepare(**arguments), backend
