"""One item of the benchmark: every provider checked against float64, then timed in turns on the same inputs."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tilewright.bench.device import DeviceTimer, poison
from tilewright.bench.timing import Timer, WallTimer, interleave

from .run import OURS
from .worker import in_words

#: Distance from float64, ||found - expected|| / ||expected||, above which a result is wrong. Rounding to bfloat16 alone
#: is 1.7e-3; weights and gradients that are rounded on the way make 3 to 5 times that.
LIMIT = 1.5e-2

Function = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """Where and how to measure. "tiny" shapes, on a CPU, are a rehearsal.

    backends: of tilewright. seconds: of timing, for one item. timed: False only calls every provider once, so that it
    compiles. providers: only these; empty is all.
    """

    device: str = "cuda"
    backends: tuple[str, ...] | list[str] = ("triton", "cuda")
    shapes: str = "full"
    seconds: float = 0.4
    timed: bool = True
    providers: tuple[str, ...] | list[str] = ()

    def ours(self, op: Callable[..., Any], **arguments: Any) -> dict[str, Callable[[], Callable[..., Any]]]:
        """A provider for each backend: it makes the op with these arguments."""
        return {
            OURS + b: functools.partial(functools.partial, op, **arguments, backend=b)  # type: ignore[arg-type]
            for b in self.backends
        }

    def timer(self, cold: bool) -> Timer:
        return WallTimer() if self.device == "cpu" else DeviceTimer(self.device, cold)

    def wall_timer(self) -> Timer:
        return WallTimer(None if self.device == "cpu" else torch.cuda.synchronize)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=dtype).mul_(scale)


@dataclass(frozen=True)
class Built:
    """providers: each makes the function to time; it raises what keeps it from being measured.

    error: the distance of a function's result from float64.
    """

    providers: dict[str, Callable[[], Function]]
    error: Callable[[Any], float]


def of_mode(
    mode: str, make: Callable[[], Callable[..., Tensor]], tensors: tuple[Tensor, ...], gradient: Tensor
) -> Callable[[], Function]:
    """A provider of "forward", or "backward" from the output's gradient, of the function that ``make`` makes."""

    def made() -> Function:
        if mode == "forward":
            return functools.partial(make(), *tensors)
        leaves = tuple(t.detach().requires_grad_() for t in tensors)
        out = make()(*leaves)
        return lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)

    return made


@dataclass(frozen=True)
class Item:
    """One call to measure.

    work: operations or bytes of it, for a unit of "TFLOP/s" or "GB/s"; with "us" the time itself is the result.
    by: "device" or "wall", the time that the result is made of. cold: the data is not in the caches.
    """

    name: str
    unit: str
    build: Callable[[Bench], Built]
    work: float = 0.0
    by: str = "device"
    cold: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def result(self, seconds: float) -> float:
        scale = {"TFLOP/s": 1e-12, "GB/s": 1e-9, "us": 1e6}[self.unit]
        return scale * seconds if self.unit == "us" else scale * self.work / seconds


def distance(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest of the tensors' distances; NaN where one holds NaN."""
    worst = 0.0
    for f, e in zip(found, expected, strict=True):
        if f.shape != e.shape:
            raise ValueError(f"a result has shape {tuple(f.shape)} instead of {tuple(e.shape)}")
        d = float((f.double() - e).norm() / e.norm())
        worst = d if d != d or d > worst else worst
        if worst != worst:
            break
    return worst


def run_item(
    item: Item, bench: Bench, without: dict[str, dict[str, str]], send: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """A row for each provider. without: providers not to be tried again, with the status and reason to show."""
    torch.manual_seed(0)
    torch._dynamo.reset()  # it falls back to eager code after some shapes of one function
    torch._functorch.config.donated_buffer = False  # a backward is timed again and again on the same graph
    send({"doing": "inputs", "provider": None})
    built = item.build(bench)
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, Function] = {}
    last: Any = None
    for provider, make in built.providers.items():
        if bench.providers and provider not in bench.providers:
            continue
        row = rows[provider] = {"item": item.name, "provider": provider, "unit": item.unit, **item.facts}
        if provider in without:
            row.update(without[provider])
            continue
        send({"doing": "checking", "provider": provider})
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                function = make()
                # Or an earlier provider's right result could be found where this one has written nothing.
                poison(last if isinstance(last, tuple) else () if last is None else (last,))
                result = function()
                error = built.error(result) if bench.timed else 0.0
        except Exception as problem:  # of any kind: the peer's failure is its row, and the others go on
            row.update(_refusal(problem, [str(w.message) for w in said]))
            continue
        row.update(error=error, limit=LIMIT)
        if not error <= LIMIT:
            row.update(status="wrong", reason=f"its error against float64 is {error:.2g}, above {LIMIT}: not timed")
            continue
        row["status"] = "checked"
        ready[provider], last = function, result
        del result
    last = None
    if bench.timed:
        send({"doing": "timing", "provider": None})
        _time(item, bench, ready, rows)
    return [_finite(row) for row in rows.values()]


def _time(item: Item, bench: Bench, ready: dict[str, Function], rows: dict[str, dict[str, Any]]) -> None:
    try:
        device = interleave(ready, bench.seconds, at_least=7, timer=bench.timer(item.cold))
        wall = interleave(ready, bench.seconds / 4, at_least=3, timer=bench.wall_timer())
    except Exception as problem:
        for provider in ready:
            rows[provider].update(_refusal(problem, []), doing="timing all providers in turns")
        return
    for provider in ready:
        times = {"device": device[provider], "wall": wall[provider]}
        rows[provider].update({name: vars(t) for name, t in times.items()}, status="timed")
        rows[provider]["result"] = item.result(times[item.by].p50)


def _refusal(problem: Exception, said: list[str]) -> dict[str, str]:
    if isinstance(problem, ImportError):
        status = "missing"
    elif isinstance(problem, torch.OutOfMemoryError):
        status = "out of memory"
        torch.cuda.empty_cache()
    else:
        status = "raised"
    reasons = [s for s in dict.fromkeys(said) if "not used" in s or "because" in s]  # SDPA's own words, in warnings
    return {"status": status, "reason": "; ".join([in_words(problem), *(" ".join(s.split())[:200] for s in reasons)])}


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    error = row.get("error", 0.0)
    return row if math.isfinite(error) else {**row, "error": None}
