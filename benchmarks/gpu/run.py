"""What every part shares: where to run, how long, and what came of a stage. It needs nothing but Python: the package
may not be in place yet, and importing it takes seconds."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: In the environment of everything that a stage starts, so that all of it can be found and ended.
MARK = "TILEWRIGHT_GPU_STAGE"
#: What workers have asked Triton's cache for, beside the folder that Triton is told to use: see cache.py.
CACHE_LOG = "cache.jsonl"
#: In the environment of a rehearsal's workers: rehearsal.py then takes the GPU's place.
REHEARSAL = "TILEWRIGHT_GPU_REHEARSAL"


def _standalone(name: str) -> Any:
    """A file of the package's bench/ that needs nothing of it, without importing the package."""
    file = ROOT / "python" / "tilewright" / "bench" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"gpu.{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


process = _standalone("process")


@dataclass
class Outcome:
    """Of a stage. problems: a line for each. data: for the result file.

    status: "passed", "failed", "partial" (its time was over, with nothing wrong until then), "not run" (it cannot be
    done here) or "not reached" (no time was left for it).
    """

    status: str
    reason: str = ""
    problems: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Run:
    """One call, as the command describes it to its stages.

    call: "contact" or "measure". out: the folder of what is to be kept. work: of logs and everything else. deadline:
    when all has to be over, by time.monotonic(), which all processes share. rehearsal: without a GPU, with tiny shapes;
    nothing that it finds is a measurement. long: every call of the benchmark. sample: of every list only the first so
    many; 0 is all. backends: those to verify and to measure.
    """

    call: str
    out: Path
    work: Path
    deadline: float
    kit: Path | None = None
    rehearsal: bool = False
    long: bool = False
    sample: int = 0
    backends: tuple[str, ...] = ("cuda", "triton")
    python: str = sys.executable

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    @property
    def cache(self) -> Path:
        """Triton's."""
        return self.work / "triton-cache"

    @property
    def cache_log(self) -> Path:
        """A line for each kernel that a worker has found in Triton's cache, or not: see cache.py."""
        return self.cache.parent / CACHE_LOG

    def some(self, listed: Sequence[Any]) -> list[Any]:
        return some(listed, self.sample)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def worker(self, log: str, env: dict[str, str] | None = None) -> Any:
        """A child for requests: see worker.py. Several may share a log."""
        command = [self.python, str(Path(__file__).parent), "--worker"]
        return process.Worker(command, self.work / log, {**os.environ, **(env or {})}, ROOT)

    def program(self, log: str, *words: str, env: dict[str, str] | None = None) -> int | None:
        """Run a program, with all it prints in the log. None: stopped at the deadline."""
        return process.run_logged(list(words), self.work / log, self.left(), {**os.environ, **(env or {})}, ROOT)

    def tail(self, log: str) -> str:
        """The last line of a log, as a reason."""
        return tail(self.work / log)

    def save(self, stage: str, outcome: Outcome) -> None:
        """What a stage has found so far: it counts if the stage ends before it has found more."""
        write_whole(self.work / f"{stage}.json", json.dumps(asdict(outcome), allow_nan=False).encode())

    def saved(self, stage: str) -> Outcome | None:
        with contextlib.suppress(FileNotFoundError):
            return Outcome(**json.loads((self.work / f"{stage}.json").read_bytes()))
        return None

    def to_json(self) -> str:
        paths = {"out": str(self.out), "work": str(self.work), "kit": self.kit and str(self.kit)}
        return json.dumps({**asdict(self), **paths})

    @classmethod
    def from_json(cls, text: str) -> Run:
        found = json.loads(text)
        kit = found["kit"] and Path(found["kit"])
        paths = {"out": Path(found["out"]), "work": Path(found["work"]), "kit": kit}
        return cls(**{**found, **paths, "backends": tuple(found["backends"])})


def some(listed: Sequence[Any], sample: int) -> list[Any]:
    """All, or of a sample the first so many."""
    return list(listed)[: sample or None]


def write_whole(file: Path, content: bytes) -> None:
    """Whoever reads it finds all of it, also if this process is killed meanwhile."""
    temporary = file.with_name(file.name + ".new")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def tail(log: Path) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")[-300:]


def end_marked(mark: str) -> None:
    """End every process that has this mark in its environment, whatever session it is in. (Of Linux.)"""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def why(answer: Any) -> str:
    """What was wrong with a worker's answer, in words; "" if nothing was."""
    found = answer.reason or answer.result.get("raised") or answer.result.get("device") or ""
    return f"{answer.ending}: {found}" if found and answer.ending != "answered" else str(found)


def slug(name: str) -> str:
    """As the files in benchmarks/results/ name a machine."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Progress:
    """A bar on a terminal, else a line every few seconds: a log that was cut off shows how far it had come."""

    def __init__(self, title: str, total: int, every: float = 10.0) -> None:
        self._title, self._total, self._every = title, total, every
        self._start = time.monotonic()
        self._next = self._start + every

    def __call__(self, done: int, text: str = "") -> None:
        now, bar = time.monotonic(), sys.stderr.isatty()
        if not bar and now < self._next and done != self._total:
            return
        self._next = now + self._every
        left = (now - self._start) * (self._total - done) / done if done else 0.0
        filled = 30 * done // max(self._total, 1)
        line = f"  {self._title} [{'#' * filled}{'.' * (30 - filled)}] {done}/{self._total} {left:.0f} s left {text}"
        end = "\n" if not bar or done == self._total else "\r"
        print(f"{line:<110}"[:160] if bar else line.rstrip(), file=sys.stderr, end=end, flush=True)
