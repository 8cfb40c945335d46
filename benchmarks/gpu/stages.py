"""The stages of the two calls, the most valuable first, and how one runs: in its own process, with a time limit."""

from __future__ import annotations

import importlib
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .run import MARK, ROOT, Outcome, Run, end_marked, process


@dataclass(frozen=True)
class Stage:
    """function: "module:function" of this folder, which takes a Run. seconds: its limit."""

    name: str
    seconds: float
    function: str
    about: str


@dataclass(frozen=True)
class Call:
    """seconds: of all its stages. groups: the stages of one run side by side."""

    seconds: float
    groups: tuple[tuple[Stage, ...], ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for group in self.groups for stage in group)


IMPORT = (
    Stage("import", 45, "imports:imports", "torch sees the GPU, and both backends can be used"),
    Stage("cache", 30, "imports:unpack", "Triton's cache, compiled beforehand, is unpacked"),
)

CALLS = {
    "contact": Call(
        150,
        (
            IMPORT,
            (Stage("smoke", 30, "cases:smoke", "a dozen verification cases on both backends"),),
            (Stage("cuda", 40, "cases:cuda", "all cases on the CUDA kernels"),),
            (Stage("triton", 60, "cases:triton", "all cases on the Triton kernels"),),
            (
                Stage("checks", 60, "checks:checks", "fused layout by TMA, 70,000 planes, streams, graphs, reruns"),
                Stage("emulator", 45, "emulator:emulator", "the emulator's results beside the GPU's"),
                Stage("memcheck", 60, "sanitize:memcheck", "compute-sanitizer: accesses out of bounds or misaligned"),
                Stage("racecheck", 60, "sanitize:racecheck", "compute-sanitizer: races in shared memory"),
            ),
        ),
    ),
    "measure": Call(
        275,
        (
            IMPORT,
            (Stage("calls", 80, "bench:calls", "the calls of the set gpu-first, beside what needs no compiling"),),
            (Stage("compiled", 90, "bench:compiled", "attention again, beside FlexAttention"),),
            (Stage("candidates", 60, "candidates:candidates", "other configurations of the hottest Triton kernels"),),
            (Stage("counters", 60, "counters:counters", "Nsight Compute's counters of five calls"),),
        ),
    ),
}

#: With LONG=1, behind the others, and so much time for it.
LONG = Stage("long", 5400, "bench:everything", "every call of the set gpu-long, beside every implementation")

#: A stage has so much less than its limit, so that it can end by itself.
GRACE = 3.0

#: On a machine without a GPU, and with other work perhaps, everything takes so many times as long.
REHEARSED = 4.0


def run_stage(name: str, work: str, deadline: str) -> None:
    """In the stage's own process: run it, and leave what came of it."""
    run = Run.from_json((Path(work) / "run.json").read_text())
    run.deadline = float(deadline)
    stage = next(s for s in (*CALLS[run.call].stages, LONG) if s.name == name)
    module, function = stage.function.split(":")
    try:
        outcome = getattr(importlib.import_module(f"gpu.{module}"), function)(run)
    except Exception as error:  # of any kind: it is this stage's, and the others go on
        traceback.print_exc()
        kept = run.saved(name) or Outcome("failed")
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        outcome = Outcome("failed", "; ".join(filter(None, (words, kept.reason))), kept.problems, kept.data)
    run.save(name, outcome)


def start(run: Run, stage: Stage, program: Sequence[str], env: dict[str, str]) -> Outcome:
    """Run a stage from outside. Whatever happens to it, there is an outcome, and nothing of it is left running.

    program: what runs a stage, before its name.
    """
    begin, log = time.monotonic(), run.work / f"{stage.name}.log"
    for old in (log, run.work / f"{stage.name}.json"):
        old.unlink(missing_ok=True)
    limit = min(stage.seconds * (REHEARSED if run.rehearsal else 1.0), run.left())
    if limit < 1.0:
        return Outcome("not reached", "no time was left for it")
    mark = f"{os.getpid()}-{stage.name}"
    deadline = begin + max(limit - GRACE, limit / 2)
    command = [*program, "--stage", stage.name, str(run.work), str(deadline)]
    try:
        code = process.run_logged(command, log, limit, {**env, MARK: mark}, ROOT)
    finally:
        end_marked(mark)
    outcome = run.saved(stage.name)
    if code is None:
        outcome = cut_short(outcome, f"stopped at its limit of {limit:.0f} s")
    elif code != 0 or outcome is None:
        ended = f"its process ended: {process.ending(code)}: {run.tail(log.name)}"
        outcome = cut_short(outcome, ended)
        outcome.status = "failed"
    return outcome


def cut_short(found: Outcome | None, how: str) -> Outcome:
    """What a stage that did not end by itself has found until then."""
    if found is None:
        return Outcome("failed", f"{how}, with nothing found until then")
    status = "failed" if found.status == "failed" else "partial"
    return Outcome(status, f"{how}; until then {found.reason}", found.problems, found.data)
