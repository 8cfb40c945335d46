"""One item of a benchmark: every provider checked against float64, then timed in turns on the same inputs."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .device import DeviceTimer, poison
from .environment import cache_bytes
from .memory import peak_bytes
from .peers import Peer, Refused
from .timing import ProviderFailed, Timer, Timing, WallTimer, interleave

#: What the names of tilewright's providers begin with; the backend follows.
OURS = "tilewright "

#: Distance from float64, ||found - expected|| / ||expected||, above which a result is wrong. Rounding a result alone
#: makes 1.7e-3 of bfloat16, 2e-4 of float16 and 3e-8 of float32; weights and gradients that are rounded on the way, and
#: long sums, make several times that. Zeros are at 1, a dropped row of a thousand at 3e-2.
LIMITS = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 1e-5}

MODES = ("forward", "backward", "both")

#: Each provider has so many samples at least. Those that are so many times slower than the fastest have no more:
#: that they are far behind is known by then, and the time is for those that are near.
LEAST_SAMPLES, FAR_BEHIND = 7, 3.0

#: Of a call that takes seconds: as many as a comparison of two results asks for.
LEAST_SAMPLES_OF_LONG = 5

Function = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """Where and how to measure.

    backends: of tilewright. shapes: the name of a set in items/. seconds: of timing, for one item. timed: False only
    calls every provider once, so that it compiles. providers: only these; empty is all. calls: of one's own, in the
    words of items/own.py, beside the set.
    """

    device: str = "cuda"
    backends: tuple[str, ...] | list[str] = ("triton", "cuda")
    shapes: str = "gpu"
    seconds: float = 0.4
    timed: bool = True
    providers: tuple[str, ...] | list[str] = ()
    calls: tuple[str, ...] | list[str] = ()

    def ours(self, op: Callable[..., Any], **arguments: Any) -> dict[str, Callable[[], Callable[..., Any]]]:
        """A provider for each backend: it makes the op with these arguments."""
        return {OURS + b: functools.partial(functools.partial, op, **arguments, backend=b) for b in self.backends}

    def timer(self, cold: bool) -> Timer:
        if self.device != "cpu":
            return DeviceTimer(self.device, cold)
        return WallTimer(between=flush_caches().zero_) if cold and self.shapes != "tiny" else WallTimer()

    def wall_timer(self) -> Timer:
        return WallTimer(None if self.device == "cpu" else torch.cuda.synchronize)

    def normal(self, *shape: int, scale: float = 1.0, dtype: str = "bfloat16") -> Tensor:
        return torch.randn(shape, device=self.device, dtype=getattr(torch, dtype)).mul_(scale)


@functools.cache
def flush_caches() -> Tensor:
    """Twice what the CPU's largest cache holds."""
    return torch.empty(2 * cache_bytes(), dtype=torch.uint8)


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
    """A provider of the function that ``make`` makes: its "forward", which answers the output; its "backward" from the
    output's gradient, or "both" one after the other, which answer the tensors' gradients."""

    def made() -> Function:
        function = make()
        if mode == "forward":
            return functools.partial(function, *tensors)
        leaves = tuple(t.detach().requires_grad_() for t in tensors)
        if mode == "both":
            return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)
        out = function(*leaves)
        return lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)

    return made


def providers_of(
    bench: Bench,
    shape: Any,
    mode: str,
    ours: dict[str, Callable[[], Callable[..., Any]]],
    peers: tuple[Peer, ...],
    tensors: tuple[Tensor, ...],
    gradient: Tensor,
) -> dict[str, Callable[[], Function]]:
    """Tilewright's backends, then every peer that exists for the device."""
    made = {name: of_mode(mode, make, tensors, gradient) for name, make in ours.items()}
    for peer in peers:
        if bench.device not in peer.devices:
            continue
        make = functools.partial(peer.make, shape, bench.device)
        usable = mode == "forward" or peer.backward
        made[peer.name] = of_mode(mode, make, tensors, gradient) if usable else refusing("it has no backward")
    return made


def refusing(reason: str) -> Callable[[], Function]:
    """A provider that serves no call, for this reason."""

    def made() -> Function:
        raise Refused(reason)

    return made


@dataclass(frozen=True)
class Item:
    """One call to measure.

    work: operations, bytes or tokens of it, for a unit of "TFLOP/s", "GB/s" or "tokens/s"; with "us" or "ms" the time
    itself is the result. A rate of tokens has a roofline if facts["flops_per_token"] says what one costs.
    by: "device" or "wall", the time that the result is made of; with "wall" no other is taken. cold: the data is not in
    the caches. long: a call may take seconds, so that few of them must do. roundings: how many times the limit its
    error may be.
    curve: growth curve that it is a point of, with its size in facts["size"]; "" for none.
    """

    name: str
    unit: str
    build: Callable[[Bench], Built]
    work: float = 0.0
    by: str = "device"
    cold: bool = False
    long: bool = False
    roundings: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)

    def result(self, seconds: float) -> float:
        scale = {"TFLOP/s": 1e-12, "GB/s": 1e-9, "tokens/s": 1.0, "us": 1e6, "ms": 1e3}[self.unit]
        return scale * seconds if self.unit in ("us", "ms") else scale * self.work / seconds

    @property
    def limited(self) -> tuple[str, float]:
        """The unit of its roofline, and its operations or bytes; "" where it has none."""
        if "flops_per_token" in self.facts:
            return "TFLOP/s", self.work * self.facts["flops_per_token"]
        return (self.unit, self.work) if self.unit in ("TFLOP/s", "GB/s") else ("", 0.0)


def build(item: Item, bench: Bench) -> Built:
    """The item's inputs, the same every time, and its providers."""
    torch.manual_seed(0)
    torch._dynamo.reset()  # it falls back to eager code after some shapes of one function
    torch._functorch.config.donated_buffer = False  # a backward is timed again and again on the same graph
    return item.build(bench)


def check(
    item: Item, built: Built, provider: str, last: Any = None, compare: bool = True
) -> tuple[dict[str, Any], Function | None, Any]:
    """For the provider's row its "status" ("checked", or why it cannot be timed), with "error" and "limit"; if it can
    be timed its function, and what that answered. last: an earlier provider's answer. compare: with float64."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            function = built.providers[provider]()
            # Or an earlier provider's right result could be found where this one has written nothing.
            poison(last if isinstance(last, tuple) else () if last is None else (last,))
            result = function()
            error = built.error(result) if compare else 0.0
    except Exception as problem:  # of any kind: the peer's failure is its row, and the others go on
        return refusal(problem, [str(w.message) for w in said]), None, None
    limit = item.roundings * LIMITS[getattr(torch, item.facts.get("dtype", "bfloat16"))]
    row = {"error": error, "limit": limit}
    if not error <= limit:
        reason = f"its error against float64 is {error:.2g}, above {limit}: not timed"
        return {**row, "status": "wrong", "reason": reason}, None, None
    return {**row, "status": "checked"}, function, result


def run_item(
    item: Item, bench: Bench, without: dict[str, dict[str, str]], send: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """A row for each provider. without: providers not to be tried again, with the status and reason to show."""
    send({"doing": "inputs", "provider": None})
    built = build(item, bench)
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, Function] = {}
    last: Any = None
    for provider in built.providers:
        if bench.providers and provider not in bench.providers:
            continue
        row = rows[provider] = {"item": item.name, "provider": provider, "unit": item.unit, "by": item.by, **item.facts}
        if provider in without:
            row.update(without[provider])
            continue
        send({"doing": "checking", "provider": provider})
        found, function, result = check(item, built, provider, last, bench.timed)
        row.update(found)
        if function is not None:
            ready[provider], last = function, result
        del result
    last = None
    if bench.timed:
        _time(item, bench, ready, rows, send)
    return [_finite(row) for row in rows.values()]


def _time(
    item: Item,
    bench: Bench,
    ready: dict[str, Function],
    rows: dict[str, dict[str, Any]],
    send: Callable[[dict[str, Any]], None],
) -> None:
    for provider, function in list(ready.items()):
        send({"doing": "memory", "provider": provider})
        try:
            rows[provider]["peak_bytes"] = peak_bytes(function, bench.device)
        except Exception as problem:
            rows[provider].update(refusal(problem, []), doing="measuring memory")
            del ready[provider]

    def announce(provider: str) -> None:  # of a crash or a hang it is known then whose it is
        send({"doing": "timing", "provider": provider})

    roof = _roofline(item, bench)
    while ready:
        try:
            timer = bench.timer(item.cold) if item.by == "device" else bench.wall_timer()
            samples = LEAST_SAMPLES_OF_LONG if item.long else LEAST_SAMPLES
            everyone = {**ready, **{n: function for n, (function, _) in roof.items()}}
            device = interleave(everyone, bench.seconds, samples, timer, announce, not item.long, _near)
            wall = device
            if bench.device != "cpu" and item.by == "device":
                wall = interleave(ready, bench.seconds / 4, 3, bench.wall_timer(), announce)
        except ProviderFailed as failed:  # the others are timed without it
            rows[failed.provider].update(refusal(failed.problem, []), doing="timing")
            del ready[failed.provider]
            continue
        break
    for provider in ready:
        times = {"device": device[provider], "wall": wall[provider]}
        rows[provider].update({name: t.to_json() for name, t in times.items()}, status="timed")
        rows[provider]["result"] = item.result(times[item.by].p50)
        if roof:
            fastest = max(work / min(device[n].values) for n, (_, work) in roof.items())
            rows[provider].update(_share(item, rows[provider]["result"], device[provider], fastest))


#: Among the functions that are timed in turns, what those begin with that show what the machine can do just then.
ROOF = "roofline: "


def _near(best: dict[str, float]) -> list[str]:
    """Those that are not far behind the fastest, and always tilewright's fastest and the fastest other."""
    sides: dict[bool, list[str]] = {}
    for name in sorted(best, key=lambda n: best[n]):
        if not name.startswith(ROOF):
            sides.setdefault(name.startswith(OURS), []).append(name)
    limit = FAR_BEHIND * min((best[names[0]] for names in sides.values()), default=0.0)
    kept = [n for names in sides.values() for n in names if n == names[0] or best[n] <= limit]
    return [*kept, *(n for n in best if n.startswith(ROOF))]


def _roofline(item: Item, bench: Bench) -> dict[str, tuple[Function, float]]:
    """A CPU's speed changes from minute to minute: there each item is timed in turns with its roofline. A GPU keeps its
    speed, and has what items/rooflines.py measured at the start of the run."""
    from .items import rooflines

    unit, work = item.limited
    if bench.device != "cpu" or not unit or item.facts.get("op") == "roofline":
        return {}
    return {ROOF + n: f for n, f in rooflines.functions(unit, work, item.facts.get("dtype", "float32")).items()}


def _share(item: Item, result: float, mine: Timing, fastest: float) -> dict[str, float]:
    """fastest: operations or bytes a second at the best of this item's turns: a limit is reached at the best moment,
    and what disturbs a sample only lowers it. "roofline": what the result would be then; "of_roofline": the share."""
    share = item.limited[1] / mine.p50 / fastest
    return {"roofline": result / share, "of_roofline": share}


def refusal(problem: Exception, said: list[str]) -> dict[str, str]:
    if isinstance(problem, Refused):
        return {"status": "refused", "reason": str(problem)}
    if isinstance(problem, ImportError):
        status = "missing"
    elif isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(problem):
        status = "out of memory"
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    else:
        status = "raised"
    reasons = [s for s in dict.fromkeys(said) if "not used" in s or "because" in s]  # SDPA's own words, in warnings
    return {"status": status, "reason": "; ".join([in_words(problem), *(" ".join(s.split())[:200] for s in reasons)])}


def in_words(error: BaseException) -> str:
    """One line, of which the first sentences matter."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    error = row.get("error", 0.0)
    return row if math.isfinite(error) else {**row, "error": None}
