"""What the stages share: where to run, how long, and what came of each."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewright.bench.process import Worker, run_logged

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """Of a stage. data: for the JSON file.

    status: "passed", "failed", "partial" (its time was over, with nothing wrong until then) or "not run".
    """

    status: str
    reason: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Run:
    """One invocation.

    out: the folder of logs and of the result. python: the interpreter that everything runs in. deadline: when all has
    to be over, by time.monotonic(). rehearsal: on the CPU, with tiny shapes; nothing that it finds is a measurement.
    long: every shape of the benchmark, and the growth curves.
    backends: those to verify and to measure.
    """

    out: Path
    python: str
    deadline: float
    rehearsal: bool = False
    long: bool = False
    backends: tuple[str, ...] = ("triton", "cuda")
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    def until(self, seconds: float) -> float:
        """When a stage that may take so long has to end, by time.monotonic()."""
        return min(time.monotonic() + seconds, self.deadline)

    def command(self, log: str, seconds: float, *words: str, env: dict[str, str] | None = None) -> int | None:
        """Run this Python with ``words``; everything printed goes to the log. None: stopped at the limit."""
        return self.program(log, seconds, self.python, *words, env=env)

    def program(self, log: str, seconds: float, *words: str, env: dict[str, str] | None = None) -> int | None:
        limit = self.until(seconds) - time.monotonic()
        return run_logged(list(words), self.out / log, limit, {**self.env, **(env or {})}, ROOT)

    def worker(self, log: str, env: dict[str, str] | None = None) -> Worker:
        """A child for verification cases or items of the benchmark. Several may share a log."""
        command = [self.python, str(Path(__file__).parent), "--worker"]
        return Worker(command, self.out / log, {**self.env, **(env or {})}, ROOT)

    def tail(self, log: str) -> str:
        """The last line of a log, as a reason."""
        lines = (self.out / log).read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")[-300:]


def slug(name: str) -> str:
    """As the files in benchmarks/results/ name a machine."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
