"""Seeing the attention calls that a model makes, without changing the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .attention_map import TopKeys, attention_map
from .ops import attention, kvcache_attention, varlen_attention
from .ops.attention import AttentionCall


@dataclass(frozen=True, eq=False)
class RecordedAttention:
    """One call of ``tilewright.attention``: q (B, H, Sq, D), k (B, Hkv, Sk, D), its options, and its lse (B, H, Sq)."""

    q: Tensor
    k: Tensor
    mask: Tensor | None
    causal: str | None
    window: tuple[int | None, int | None]
    softcap: float
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    scale: float
    lse: Tensor

    def map(self, *, rows: Any = None, top_k: int | None = None) -> Tensor | TopKeys:
        """The call's attention weights; see :func:`tilewright.attention_map`."""
        return attention_map(**{f.name: getattr(self, f.name) for f in fields(self)}, rows=rows, top_k=top_k)


class _Recorder(TorchDispatchMode):
    """Ops show themselves to dispatch modes as torch.ops.tilewright operators, with checked, canonical arguments."""

    def __init__(self, calls: list[RecordedAttention]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in (varlen_attention.OP.operator, kvcache_attention.OP.operator):
            raise NotImplementedError(
                f"record_attention: the model called {func.name().split('::')[1]}, whose sequences have no common map; "
                "run it on padded batches and without a cache"
            )
        result = func(*args, **(kwargs or {}))
        if func is attention.OP.operator:
            self.calls.append(_recorded(AttentionCall(*args[:-1]), result[1]))
        return result


def _recorded(call: AttentionCall, lse: Tensor) -> RecordedAttention:
    def free(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach()  # not to keep a training step's graph alive

    left, right = (None if side < 0 else side for side in (call.window_left, call.window_right))
    return RecordedAttention(
        call.q.detach(),
        call.k.detach(),
        free(call.mask),
        call.causal,
        (left, right),
        call.softcap,
        free(call.alibi_slopes),
        free(call.sinks),
        call.scale,
        lse.detach(),
    )


@contextmanager
def record_attention() -> Iterator[list[RecordedAttention]]:
    """Record every call of ``tilewright.attention`` inside, by this thread, in the order in which they are made.

    That is one call per layer of a usual model, whatever it calls the op through: ``tilewright.models``,
    ``tilewright.nn``, ``tilewright.scaled_dot_product_attention`` or a model of another library that was put on
    tilewright. Outside, nothing is different and nothing costs time. Inside, q and k are kept, not copied: they cost
    their memory, and code that overwrites them changes what is recorded.

    >>> with tilewright.record_attention() as calls:
    ...     model(input_ids)
    >>> calls[0].map(rows=[-1])                     # (B, H, 1, S): what the last token attends to in the first layer

    Raises:
        NotImplementedError: inside, where a model calls ``varlen_attention`` or ``kvcache_attention``.
    """
    calls: list[RecordedAttention] = []
    with _Recorder(calls):
        yield calls
