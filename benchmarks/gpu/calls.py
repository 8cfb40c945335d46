"""In a worker: what checks.py asks for. Each answers whether it is right, and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tilewright.bench import exact
from tilewright.bench.measure import LIMITS, in_words
from tilewright.verify import planes
from tilewright.verify.run import prepare
from tilewright.verify.traps import overwrite, same_bits

from .device import Gpu, device

#: A rehearsal's, since nothing fast computes them.
FEW_PLANES = 80


def check(request: dict[str, Any]) -> dict[str, Any]:
    right, words = CHECKS[request["check"]](request)
    return {"right": right, "words": words}


def _near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> tuple[bool, str]:
    """Within what rounding makes of a result."""
    limit = max(LIMITS[t.dtype] for t in found)
    distance = exact.distance(found, [t.double() for t in expected])
    return distance <= limit, f"{distance:.2g} from float64, of {limit:.2g}"


def fused(head_dim: str, backend: str, seqlen: int, at: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """Causal attention with q, k and v as views into one projection (B, S, 3 H D): the output, and the projection's
    gradient."""
    from tilewright.ops.attention import attention

    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(2, seqlen, 3, 4, int(head_dim), generator=numbers).bfloat16().to(at, dtype).requires_grad_()
    q, k, v = (t.transpose(1, 2) for t in x.unbind(2))
    out = attention(q, k, v, causal="top_left", backend=backend)
    assert isinstance(out, Tensor)
    upstream = torch.arange(out.numel(), dtype=torch.float64).cos().to(at, dtype)
    return (out.detach(), *torch.autograd.grad(out, x, upstream.view_as(out)))


#: Enough for two blocks of keys of every configuration, below which nothing is read by TMA; and for the emulator.
FUSED_SEQLEN, FUSED_SEQLEN_EMULATED = 512, 48


def _fused(request: dict[str, Any]) -> tuple[bool, str]:
    at, triton, head_dim = device(), request["backend"] == "triton", request["subject"]
    seqlen = FUSED_SEQLEN if triton or isinstance(at, Gpu) else FUSED_SEQLEN_EMULATED
    expected = fused(head_dim, "reference", seqlen, at.name, torch.float64)
    if not triton:
        return _near(fused(head_dim, request["backend"], seqlen, at.name), expected)
    from tilewright.backends import triton_attention_call

    with mock.patch.object(triton_attention_call, "describe", wraps=triton_attention_call.describe) as described:
        right, words = _near(fused(head_dim, "triton", seqlen, at.name), expected)
    count = described.call_count
    return right and count > 0, f"{words}; {count} descriptors" if count else f"{words}; nothing was read by TMA"


def _planes(request: dict[str, Any]) -> tuple[bool, str]:
    at = device()
    number = planes.PLANES if isinstance(at, Gpu) else FEW_PLANES
    call = next(c for c in planes.calls(number, at.name) if c.name == request["subject"])
    return _near(call.run(request["backend"]), call.run("reference", torch.float64))


def _prepared(request: dict[str, Any], seed: int = 0) -> Any:
    from tilewright.verify.cases import find_case

    return prepare(find_case(request["subject"]), request["backend"], seed)


def _apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Which results differ in a bit, in words, or ""."""
    names = [n for n in expected if not same_bits(found[n], expected[n])]
    return f"{', '.join(names)} differ" if names else ""


def _stream(request: dict[str, Any]) -> tuple[bool, str]:
    """The inputs are written by the other stream, late: a kernel on another one would see NaN."""
    prepared = _prepared(request)
    expected = _kept(prepared.call())
    right = [b.clone() for b in prepared.blocks]
    for block in prepared.blocks:
        if block.is_floating_point():
            block.fill_(torch.nan)
    at = device()
    at.synchronize()
    with at.other_stream():
        overwrite(prepared.blocks, right)
        found = _kept(prepared.call())
    apart = _apart(found, expected)
    return not apart, apart or "the same bits"


def _graph(request: dict[str, Any]) -> tuple[bool, str]:
    """Captured after a first call; a replay on other numbers has to give what a call gives on them."""
    prepared = _prepared(request)
    prepared.call()
    replay, results = device().capture(prepared.call)
    return _replayed(request, prepared, replay, results)


def _cold_graph(request: dict[str, Any]) -> tuple[bool, str]:
    """Captured as the first call of this process. A library may refuse that; what matters is that it says so and that
    the process goes on."""
    prepared = _prepared(request)
    try:
        replay, results = device().capture(prepared.call)
    except RuntimeError as error:
        device().synchronize()
        again, words = _graph(request)
        return again, f"cannot be captured before a first call: {in_words(error)}; after one: {words}"
    return _replayed(request, prepared, replay, results)


def _replayed(
    request: dict[str, Any], prepared: Any, replay: Callable[[], None], results: dict[str, Tensor]
) -> tuple[bool, str]:
    overwrite(prepared.blocks, _prepared(request, seed=1).blocks)
    replay()
    device().synchronize()
    apart = _apart(_kept(results), prepared.call())
    return not apart, apart or "a replay on other numbers gives a call's bits"


def _kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in tensors.items()}


def _reruns(request: dict[str, Any]) -> tuple[bool, str]:
    """So many results that have to be the first one, bit by bit, of a call that fills the GPU."""
    from tilewright.bench.measure import OURS, Bench
    from tilewright.bench.worker import find_item

    at, backend = device(), request["backend"]
    bench = Bench(at.name, (backend,), "gpu" if isinstance(at, Gpu) else "tiny")
    torch.manual_seed(0)
    function = find_item(request["subject"], bench).build(bench).providers[OURS + backend]()

    def tensors() -> tuple[Tensor, ...]:
        result = function()
        return result if isinstance(result, tuple) else (result,)

    first, different = tensors(), 0
    for _ in range(request["times"]):
        different += not all(torch.equal(a, b) for a, b in zip(first, tensors(), strict=True))
    return different == 0, f"{different} of {request['times']} results differ from the first"


CHECKS: dict[str, Callable[[dict[str, Any]], tuple[bool, str]]] = {
    "fused by TMA": _fused,
    "planes": _planes,
    "stream": _stream,
    "graph": _graph,
    "cold graph": _cold_graph,
    "reruns": _reruns,
}
