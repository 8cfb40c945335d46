"""Choosing an implementation for a call, and explaining the choice."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from . import registry
from .chips import chip_of
from .config import BACKENDS, ENVIRONMENT_VARIABLE, requested_backend
from .errors import BackendError, list_reasons
from .registry import Implementation

log = logging.getLogger("tilewright")

#: What automatic selection tries, by the device of the call's tensors; on a GPU, ORDERS has which of them is first.
AUTOMATIC = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")}


class Order(NamedTuple):
    """Of the backends of a GPU: from this compute capability on, which is tried first, and why."""

    capability: tuple[int, int]
    first: str
    why: str


_TMA = Order((9, 0), "triton", "its kernels use TMA and wgmma, those in CUDA C++ do not yet; not measured")
_COPIES = Order(
    (8, 0), "triton", "in CUDA C++ copies take more instructions than all else, by the machine code; not measured"
)
# The Python of a call took 10.8 against 34.5 us for softmax and 40 against 225 us for a step of decoding, the latter on
# the stand-in driver (tilewright.stand_in), both on the same busy processor.
_LAUNCH = Order(
    (8, 0), "cuda", "memory is read once either way, and its launch takes a third to a fifth of Triton's time in Python"
)
_FEW_ROWS = Order((8, 0), "cuda", "it has a path of its own for few rows; not measured")

#: By op, the newest chips first. The first row whose capability the chip has is the one that counts.
ORDERS: dict[str, tuple[Order, ...]] = {
    "attention": (_TMA, _COPIES),
    "varlen_attention": (_TMA, _COPIES),
    "kvcache_attention": (_LAUNCH,),
    "softmax": (_LAUNCH,),
    "log_softmax": (_LAUNCH,),
    "ffn": (_TMA, _FEW_ROWS),
}

_logged: set[tuple[str, str, str]] = set()


def order(op_name: str, device: torch.device) -> Order | None:
    """Which of a GPU's backends comes first for an op, or None where there is nothing to choose (on another device, or
    for a call that is only described)."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    capability = chip_of(device).capability
    return next((o for o in ORDERS.get(op_name, ()) if capability >= o.capability), None)


@functools.cache
def candidates(op_name: str, device: torch.device) -> tuple[str, ...]:
    found, chosen = AUTOMATIC.get(device.type, ("reference",)), order(op_name, device)
    return found if chosen is None else (chosen.first, *(b for b in found if b != chosen.first))


def select(op_name: str, call: Any, requested: str) -> Implementation:
    """The implementation that serves ``call``. ``requested`` comes from :func:`requested_backend`; ``""`` is automatic.

    A requested backend never falls back: if it cannot serve the call, BackendError says why.
    """
    if not requested:
        return _select_automatically(op_name, call)
    found = registry.choose(op_name, requested, call)
    if not isinstance(found, str):
        return found
    others = {b: registry.why_not(op_name, b, call) or "can serve this call" for b in BACKENDS if b != requested}
    raise BackendError(
        f"backend {requested!r} cannot serve this {op_name} call: {found}\nother backends:\n{list_reasons(others)}"
    )


def _select_automatically(op_name: str, call: Any) -> Implementation:
    reasons: dict[str, str] = {}
    first = call[0]
    for backend in AUTOMATIC["cpu"] if first.is_cpu else candidates(op_name, first.device):
        found = registry.choose(op_name, backend, call)
        if not isinstance(found, str):
            for skipped, why in reasons.items():
                _log_skip(op_name, skipped, why, backend)
            return found
        reasons[backend] = found
    raise BackendError(f"no backend can serve this {op_name} call:\n{list_reasons(reasons)}")


def why_no_kernel(op_name: str, call: Any) -> str | None:
    """Why automatic selection would leave ``call`` to the reference math, or None when a kernel serves it."""
    return _join_reasons(call[0].device.type, lambda backend: registry.why_not(op_name, backend, call))


def why_no_kernels_on(device_type: str) -> str | None:
    """Why automatic selection would leave every call on such tensors to the reference math, or None when it would
    not."""
    return _join_reasons(device_type, registry.unavailable)


def _join_reasons(device_type: str, why_not: Callable[[str], str | None]) -> str | None:
    reasons = {}
    for backend in AUTOMATIC.get(device_type, ()):
        if backend != "reference":
            why = why_not(backend)
            if why is None:
                return None
            reasons[backend] = why
    return "; ".join(f"{b}: {why}" for b, why in reasons.items()) or f"tilewright has no kernels for {device_type}"


def _log_skip(op_name: str, skipped: str, why: str, chosen: str) -> None:
    if (op_name, skipped, why) not in _logged:
        _logged.add((op_name, skipped, why))
        log.warning("%s: skipping backend %s (%s); using %s", op_name, skipped, why, chosen)


@dataclass(frozen=True)
class Explanation:
    """Which backend serves a call, how that was decided, and what every backend says about it."""

    op: str
    chosen: str | None
    how: str
    reasons: dict[str, str | None]
    notes: str = ""

    def __str__(self) -> str:
        verdict = f"runs on {self.chosen}" if self.chosen else "cannot be served"
        lines = {b: reason or "can serve this call" for b, reason in self.reasons.items()}
        return "\n".join(filter(None, (f"{self.op} {verdict} ({self.how})", list_reasons(lines), self.notes)))


def explain_call(op_name: str, call: Any, backend: str | None) -> Explanation:
    requested = requested_backend(backend)
    reasons = {b: registry.why_not(op_name, b, call) for b in BACKENDS}
    if requested:
        source = "backend=" if backend is not None else f"use_backend or {ENVIRONMENT_VARIABLE}"
        return Explanation(op_name, None if reasons[requested] else requested, f"requested by {source}", reasons)
    device = call[0].device
    tried, preferred = candidates(op_name, device), order(op_name, device)
    chosen = next((b for b in tried if reasons[b] is None), None)
    how = f"automatic for {device.type} tensors: {', then '.join(tried)}"
    if preferred is not None:
        how += f"; {preferred.first} first on this GPU, since {preferred.why}"
    return Explanation(op_name, chosen, how, reasons)
