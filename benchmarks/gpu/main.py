"""The command: the package put in place, then the stages one after the other, and the files anew after each."""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import kit, place, report
from .results import Files
from .run import REHEARSAL, ROOT, Outcome, Run
from .stages import CALLS, LONG, REHEARSED, Stage, start

#: Programs that stand in for NVIDIA's in a rehearsal.
STAND_INS = Path(__file__).parent / "stand_ins"

#: What is asked of nvidia-smi, by the names in the result file.
FACTS = {
    "name": "name",
    "driver": "driver_version",
    "capability": "compute_cap",
    "memory": "memory.total",
    "sm_clock": "clocks.sm",
    "memory_clock": "clocks.mem",
    "power_limit": "power.limit",
    "temperature": "temperature.gpu",
}


def main(arguments: Sequence[str], program: Sequence[str] = (sys.executable, str(Path(__file__).parent))) -> int:
    """program: what runs a stage, before ``--stage``."""
    given = parsed(arguments)
    work, out = given.work.resolve(), given.out.resolve()
    env = environment(given.rehearse, work)
    gpu = gpu_facts(env)
    if "missing" in gpu:
        print(f"make gpu-{given.call} needs a GPU: {gpu['missing']}", file=sys.stderr)
        return 1
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    for old in (*work.glob("*.log"), *work.glob("*.json*")):
        old.unlink()
    run = Run(given.call, out, work, 0.0, given.kit.resolve(), given.rehearse, given.long, given.sample)
    command = Command(run, gpu, env, program)
    if command.place():
        call = CALLS[given.call]
        groups = [*call.groups, *([(LONG,)] if given.long else [])]
        seconds = (call.seconds + (LONG.seconds if given.long else 0.0)) * (REHEARSED if given.rehearse else 1.0)
        command.begin(given.seconds or seconds)
        for group in groups:
            command.run([s for s in group if s.name in given.stages or not given.stages])
    print(f"\n{command.files.write(command.outcomes, over=True)}{command.files.result}", flush=True)
    return int(report.failed(command.outcomes))


class Command:
    """One invocation. gpu: what nvidia-smi says. env: of everything that is started."""

    def __init__(self, run: Run, gpu: dict[str, Any], env: dict[str, str], program: Sequence[str]) -> None:
        self._run, self._env, self._program = run, env, program
        started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.files, self.outcomes = Files(run, gpu, started), dict[str, Outcome]()
        self._lock = threading.Lock()

    def place(self) -> bool:
        """The package: from the kit, or else built here. Answers whether it is there."""
        begin = time.monotonic()
        outcome = place.from_kit(self._run, kit.digest())
        if outcome.status == "passed":
            self._record("place", outcome, begin)
            return True
        return self._build(outcome.reason)

    def _build(self, because: str) -> bool:
        begin = time.monotonic()
        print(f"{because}: building the package here, which takes minutes", flush=True)
        outcome = place.by_building(self._run, because)
        self._record("place", outcome, begin)
        return outcome.status == "passed"

    def begin(self, seconds: float) -> None:
        """From now on the time of the stages counts."""
        self._run.deadline = time.monotonic() + seconds
        (self._run.work / "run.json").write_text(self._run.to_json())

    def run(self, stages: Sequence[Stage]) -> None:
        """Side by side. As soon as one has ended, its outcome is in the files."""
        if not stages:
            return
        print(f"{', '.join(s.name for s in stages)} ...", file=sys.stderr, flush=True)
        with ThreadPoolExecutor(len(stages)) as pool:
            for done in [pool.submit(self._start, stage) for stage in stages]:
                done.result()
        imported = self.outcomes.get("import")
        if imported is not None and imported.data.get("unusable") and self.outcomes["place"].data.get("kit"):
            left = self._run.left()
            if self._build(f"the kit's wheel does not work here ({imported.reason[:200]})"):
                self.begin(left)
                self.run([s for s in stages if s.name == "import"])

    def _start(self, stage: Stage) -> None:
        begin = time.monotonic()
        try:
            outcome = start(self._run, stage, self._program, self._env)
            told, missed = report.cached(self._run, stage.name)
        except Exception as error:  # of this program: the other stages go on
            outcome, told, missed = Outcome("failed", f"{type(error).__name__}: {error}"), "", []
        if told:
            outcome.reason, outcome.problems = f"{outcome.reason}; {told}", [*outcome.problems, *missed]
        self._record(stage.name, outcome, begin)

    def _record(self, name: str, outcome: Outcome, begin: float) -> None:
        outcome.seconds = time.monotonic() - begin
        with self._lock:
            self.outcomes[name] = outcome
            self.files.write(self.outcomes, over=False)
            told = [f"  {p[: report.PROBLEM]}" for p in outcome.problems[:3]]
            line = f"{name}: {outcome.status} after {outcome.seconds:.0f} s: {outcome.reason[: report.REASON]}"
            print("\n".join([line, *told]), flush=True)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu",
        description=__doc__,
        epilog="\n".join(
            ["stages, with their limits:", *described(), "", "Also: kit, rehearse (each has --help). See docs/gpu.md."]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("call", choices=list(CALLS))
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the result, table and logs")
    parser.add_argument("--kit", type=Path, default=kit.KIT, help="folder that `make gpu-kit` made")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-work", help="folder of everything else")
    names = [s.name for c in CALLS.values() for s in c.stages]
    parser.add_argument("--stages", nargs="*", default=[], choices=names, help="only these; all if none is named")
    parser.add_argument("--long", action="store_true", help="then every call of the benchmark (measure)")
    parser.add_argument("--seconds", type=float, help="for all stages")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, with tiny shapes: measures nothing")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="of every list only N: for rehearsals")
    return parser.parse_args(arguments)


def described() -> list[str]:
    return [
        f"  {call:8} {stage.name:11}{stage.seconds:3.0f} s  {stage.about}"
        for call, of in CALLS.items()
        for stage in of.stages
    ]


def environment(rehearsal: bool, work: Path) -> dict[str, str]:
    """Of everything that is started."""
    # The package comes before whatever else is on Python's path.
    path = os.pathsep.join(filter(None, [str(work / "site"), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(work / "triton-cache")}
    # Configurations that somebody has tuned on this machine are no part of what is tested.
    env |= {"PYTHONUNBUFFERED": "1", "TILEWRIGHT_TUNED": "off"}
    if rehearsal:
        env |= {"PATH": f"{STAND_INS}{os.pathsep}{env.get('PATH', os.defpath)}", REHEARSAL: "1"}
        env |= {"TILEWRIGHT_CUDA_EMULATE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        env.pop("TRITON_INTERPRET", None)
    return env


def gpu_facts(env: dict[str, str]) -> dict[str, Any]:
    """What nvidia-smi says, or under "missing" why it says nothing."""
    found = shutil.which("nvidia-smi", path=env.get("PATH"))
    if found is None:
        return {"missing": "nvidia-smi was not found on PATH"}
    command = [found, f"--query-gpu={','.join(FACTS.values())}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=env)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"missing": f"{found}: {error}"}
    if done.returncode != 0:
        return {"missing": f"nvidia-smi says: {(done.stdout + done.stderr).strip()[:300]}"}
    return dict(zip(FACTS, (v.strip() for v in done.stdout.splitlines()[0].split(",")), strict=False))
