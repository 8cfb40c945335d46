"""In a rehearsal's worker: Triton's kernels are compiled, or found in the cache, and launched as on a GPU by a stand-in
for its driver, which computes nothing. The results are then the reference's, so that all around the kernels finds right
numbers."""

from __future__ import annotations

import functools
from typing import Any

from tilewright import registry, stand_in
from tilewright.registry import Implementation


def begin() -> None:
    stand_in.activate("sm_90")
    found = registry.find

    @functools.cache
    def find(op: str, backend: str) -> Implementation | str:
        implementation = found(op, backend)
        if backend != "triton" or isinstance(implementation, str):
            return implementation
        reference = found(op, "reference")
        assert not isinstance(reference, str)
        return _with_results_of(reference, implementation)

    registry.find = find  # type: ignore[assignment]


def _with_results_of(reference: Implementation, launched: Implementation) -> Implementation:
    def forward(call: Any) -> Any:
        launched.forward(call)
        return reference.forward(call)

    def backward(call: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
        assert launched.backward is not None
        assert reference.backward is not None
        launched.backward(call, outputs, grads, wanted)
        return reference.backward(call, outputs, grads, wanted)

    return Implementation(forward, backward if launched.backward else None, launched.unsupported)
