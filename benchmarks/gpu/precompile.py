"""In a worker: every Triton kernel that the two calls will ask for, compiled for Hopper through the stand-in for a GPU,
on tensors whose numbers do not matter."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewright import stand_in
from tilewright.bench.items import OPS, all_items
from tilewright.bench.measure import OURS, Bench
from tilewright.bench.worker import find_item
from tilewright.verify import planes
from tilewright.verify.cases import CASES, find_case
from tilewright.verify.run import results

from . import calls, candidates, checks, counters
from .bench import PEERS
from .cases import SMOKE, shuffled
from .run import some
from .sanitize import WATCHED

#: The chip that a kit is for.
CHIP = "sm_90"


def precompile(request: dict[str, Any]) -> dict[str, Any]:
    """ "list": the requests to make. Or one of them: a call, which is launched once."""
    if request["what"] == "list":
        return {"requests": requests(request["sample"])}
    _activate(request["log"])
    KINDS[request["what"]](request["subject"])
    return {}


@functools.cache
def _activate(log: str) -> None:
    """Once in a process."""
    from .cache import watch

    watch(Path(log))
    stand_in.activate(CHIP)


def requests(sample: int = 0) -> list[dict[str, Any]]:
    """With a sample, for a rehearsal with the same. In an order in which neighbours rarely need the same kernels:
    two processes would compile them at the same time."""
    ids = shuffled([c.id for c in CASES if not c.id.endswith("/float64")])
    cases = [name for listed in (SMOKE, WATCHED, checks.CASES, ids) for name in some(listed, sample)]
    found: list[tuple[str, Any]] = [("case", name) for name in dict.fromkeys(cases)]
    found += [("fused", d) for d in some(checks.HEAD_DIMS, sample)]
    found += [("planes", name) for name in some(checks.PLANES, sample)]
    # A rehearsal's, which any kit serves.
    found += [("tiny item", name) for name in tiny_items(sample)]
    found += [("tiny candidate", n) for n in range(len(some(candidates.TINY, sample)))]
    if not sample:
        found += [("item", name) for name in items()]
        found += [("candidate", n) for n in range(len(candidates.CANDIDATES))]
    ordered = sorted(found, key=lambda pair: zlib.crc32(str(pair).encode()))
    return [{"do": "precompile", "what": what, "subject": subject} for what, subject in ordered]


def items() -> list[str]:
    """Of the benchmark, those of the first set, and those that other stages take from the sets."""
    named = [word.rpartition("=")[0] for word in counters.CALLS]
    return list(dict.fromkeys([*(i.name for i in all_items("gpu-first")), *named, *checks.RERUN]))


def tiny_items(sample: int) -> list[str]:
    """Of a rehearsal: of each op that is measured the first ones."""
    of_ops = [[i.name for i in op("tiny")] for name, op in OPS.items() if name in PEERS]
    named = [word.rpartition("=")[0] for word in some(counters.TINY, sample)]
    return list(
        dict.fromkeys([*(n for of in of_ops for n in some(of, sample)), *named, *some(checks.RERUN_TINY, sample)])
    )


@dataclass(frozen=True)
class _Empty(Bench):
    """Makes no numbers, which would take longer than compiling."""

    def normal(self, *shape: int, scale: float = 1.0, dtype: str = "bfloat16") -> Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype))


def _item(name: str, sets: Sequence[str] = ("gpu-first", "gpu")) -> None:
    for shapes in sets:
        bench = _Empty("cpu", ("triton",), shapes)
        if any(i.name == name for i in all_items(shapes)):
            providers = find_item(name, bench).build(bench).providers
            if OURS + "triton" in providers:
                providers[OURS + "triton"]()()
            return
    raise ValueError(f"no set of the benchmark has an item {name!r}")


def _candidate(candidate: candidates.Candidate, tiny: bool) -> None:
    """What `trials.trial` launches, with the candidate; one that does not compile is refused there as well."""
    from tilewright.triton_kernels import launch
    from tilewright.tune.search import launching
    from tilewright.tune.workloads import Maker

    config = launch.Config(candidate.blocks, candidate.warps, candidate.stages)
    workload = launching(candidate.kernel, candidate.key, Maker(torch.device("cpu"), tiny))
    if isinstance(workload, str):
        raise ValueError(f"{candidate.kernel} {candidate.key}: {workload}")
    workload.checked()
    with launch.trial(candidate.kernel, candidate.key, config):
        workload.timed()
        workload.checked()


def _planes(name: str) -> None:
    next(c for c in planes.calls() if c.name == name).run("triton")


KINDS: dict[str, Callable[[Any], object]] = {
    "case": lambda name: results(find_case(name), "triton"),
    "fused": lambda head_dim: calls.fused(head_dim, "triton", calls.FUSED_SEQLEN, "cpu"),
    "planes": _planes,
    "item": _item,
    "tiny item": lambda name: _item(name, ("tiny",)),
    "candidate": lambda number: _candidate(candidates.CANDIDATES[number], False),
    "tiny candidate": lambda number: _candidate(candidates.TINY[number], True),
}
