"""The command around the stages: it needs nothing but Python, and whatever happens to a stage, the others run and there
is a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gpu import main, place, stages
from gpu.run import MARK, Outcome, Run, end_marked
from gpu.stages import CALLS, Call, Stage

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "gpu"

#: A stage that does what the words behind its name in a file say; "--stage NAME WORK DEADLINE" are its arguments.
FAKE_STAGE = """
import json, os, pathlib, subprocess, sys, time
name, work = sys.argv[2], pathlib.Path(sys.argv[3])
told = json.loads((work / "fake").read_text()).get(name, "pass")
def save(status, **more):
    (work / f"{name}.json").write_text(json.dumps({"status": status, "reason": "found", **more}))
if told == "pass":
    save("passed", data={"rows": [{"item": name, "provider": "tilewright cuda", "status": "timed", "unit": "us",
        "result": 1.0}]} if name == "calls" else {})
elif told == "fail":
    save("failed", problems=[f"problem {i} {'x' * 300}" for i in range(50)])
elif told == "crash":
    save("partial", problems=["seen before"])
    print("last words", flush=True)
    os.kill(os.getpid(), 11)
elif told == "raise":
    raise ValueError("it broke")
elif told == "hang":
    save("partial")
    # In a session of its own, as workers are.
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(600)  # {work}"], start_new_session=True)
    time.sleep(600)
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with fake stages, of a second each at most, and answers its exit code and its result."""
    monkeypatch.setenv("PATH", f"{main.STAND_INS}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(
        place, "from_kit", lambda run, sources: Outcome("passed", "from the kit", data={"kit": {"wheel": "a.whl"}})
    )
    monkeypatch.setattr(stages, "GRACE", 0.5)
    program = tmp_path / "stage.py"
    program.write_text(FAKE_STAGE)
    work = tmp_path / "work"
    work.mkdir()

    def run(call: str, told: dict[str, str], *words: str, limit: float = 20.0) -> tuple[int, dict[str, Any]]:
        groups = tuple(tuple(Stage(s.name, limit, s.function, s.about) for s in group) for group in CALLS[call].groups)
        monkeypatch.setitem(main.CALLS, call, Call(600.0, groups))
        (work / "fake").write_text(json.dumps(told))
        folders = ["--out", str(tmp_path / "out"), "--work", str(work), "--kit", str(tmp_path / "kit")]
        code = main.main([call, *folders, *words], [sys.executable, str(program)])
        newest = max((tmp_path / "out").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return code, json.loads(newest.read_text())

    return run


def bare_python(folder: Path) -> str:
    """Without any package, and without pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


def run_alone(python: str, words: Sequence[str], cwd: Path, path: str) -> subprocess.CompletedProcess[str]:
    """With neither the package nor the checkout on Python's path."""
    env = {"PATH": path, "HOME": str(cwd)}
    command = [python, "-E", "-S", str(PROGRAM), *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("call", CALLS)
def test_it_runs_where_nothing_is_installed(call: str, tmp_path: Path) -> None:
    """The package is put in place by it; what it needs until then is Python. Here nothing can be built either."""
    python = bare_python(tmp_path / "python")
    path = f"{main.STAND_INS}{os.pathsep}{tmp_path / 'python' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    words = [call, "--out", "out", "--work", "work", "--kit", "no-kit"]
    done = run_alone(python, words, tmp_path, path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    (file,) = (tmp_path / "out").glob("*.json")
    found = json.loads(file.read_text())
    reason = found["stages"]["place"]["reason"]
    assert "there is no kit in" in reason and "building it here ended: exit code 1" in reason, reason
    assert "No module named pip" in reason, reason
    assert done.stdout.splitlines()[-1] == str(file), "the last line is where the result is"


def test_without_a_gpu_it_says_so_at_once(tmp_path: Path) -> None:
    done = run_alone(sys.executable, ["contact"], tmp_path, "/nowhere")
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert done.stderr.strip() == "make gpu-contact needs a GPU: nvidia-smi was not found on PATH"


@pytest.mark.parametrize("call", CALLS)
def test_a_stage_that_hangs_costs_its_limit_and_no_more(call: str, command: Any, tmp_path: Path) -> None:
    """Every stage of the call, with a child in another session."""
    names = [s.name for s in CALLS[call].stages]
    begin = time.monotonic()
    code, found = command(call, dict.fromkeys(names, "hang"), limit=1.2)
    assert time.monotonic() - begin < 1.2 * len(CALLS[call].groups) + 10.0
    for name in names:
        assert found["stages"][name]["status"] == "partial", found["stages"][name]
        assert "stopped at its limit of 1 s; until then found" in found["stages"][name]["reason"]
    assert code == 0, "nothing was wrong until then"
    mine = f"time.sleep(600)  # {tmp_path}".encode()
    sleeping = [p for p in Path("/proc").glob("[0-9]*") if mine in read(p / "cmdline")]
    assert not sleeping, f"still running: {sleeping}"


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["fail", "crash", "raise"])
def test_a_stage_that_fails_hides_no_other(call: str, how: str, command: Any) -> None:
    names = [s.name for s in CALLS[call].stages]
    for bad in names[:1] + names[3:4]:
        code, found = command(call, {bad: how})
        assert code == 1
        assert {n: s["status"] for n, s in found["stages"].items() if n not in ("place", bad)} == {
            n: "passed" for n in names if n != bad
        }
        outcome = found["stages"][bad]
        assert outcome["status"] == "failed"
        assert {"fail": "found", "crash": "SIGSEGV: last words", "raise": "it broke"}[how] in outcome["reason"]
        assert len(outcome["problems"]) == {"fail": 50, "crash": 1, "raise": 0}[how]


def test_when_all_is_well_the_last_lines_say_so(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = command("measure", {})
    printed = capsys.readouterr().out
    assert code == 0 and found["complete"] is True and found["rehearsal"] is False
    verdict, file = printed.rstrip().splitlines()[-2:]
    assert verdict == "measure on none: a rehearsal: ALL PASSED" and file.endswith(".json")
    from tilewright.bench.summary import read

    result = read(Path(file))
    assert [r["item"] for r in result.rows] == ["calls"] and result.command == "make gpu-measure"


def test_the_worst_that_can_be_printed_last_is_short(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever sees the last 12,000 characters sees every stage's outcome, and what is wrong."""
    for call in CALLS:
        names = [s.name for s in CALLS[call].stages]
        command(call, dict.fromkeys(names, "fail"))
        end = capsys.readouterr().out[-12000:]
        table = end[end.index("what is wrong:") :]
        for name in names:
            assert f"{name}: problem 0 xxx" in table and f"{name}: and 46 more" in table
            assert any(line.startswith(f"{name} ") and " failed " in line for line in table.splitlines())


def test_three_files_come_back_and_are_there_after_every_stage(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed leaves what it has found."""
    seen: list[dict[str, Any]] = []
    real = main.Command._record

    def record(self: main.Command, name: str, outcome: Outcome, begin: float) -> None:
        real(self, name, outcome, begin)
        # (Of stages that run side by side, the next one's may be on their way.)
        files = sorted(f.suffix for f in (tmp_path / "out").iterdir() if f.suffix != ".new")
        assert files == [".gz", ".json", ".txt"]
        (file,) = (tmp_path / "out").glob("*.json")
        seen.append(json.loads(file.read_text()))

    monkeypatch.setattr(main.Command, "_record", record)
    _, found = command("contact", {"smoke": "crash"})
    # Of stages that run side by side, the files may hold the next one's as well.
    assert all(len(s["stages"]) >= number for number, s in enumerate(seen, 1)) and len(seen) == len(found["stages"])
    assert not any(s["complete"] for s in seen) and found["complete"] is True
    (archive,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(archive) as logs:
        assert b"last words" in logs.extractfile("smoke.log").read()  # type: ignore[union-attr]


def test_what_the_command_itself_stumbles_over_is_a_stages_failure(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "work" / "cache.jsonl"
    real = main.start

    def start(run: Run, stage: Stage, program: Sequence[str], env: dict[str, str]) -> Outcome:
        if stage.name == "cuda":
            raise OSError("no space left on device")
        if stage.name == "triton":  # a worker was ended in the middle of its second line
            log.write_text('{"stage": "triton", "key": "K", "hit": false, "why": "ptxas"}\n{"stage": "tri')
        return real(run, stage, program, env)

    monkeypatch.setattr(main, "start", start)
    code, found = command("contact", {})
    assert code == 1 and found["stages"]["cuda"]["reason"] == "OSError: no space left on device"
    assert found["stages"]["triton"]["reason"] == "found; Triton's cache: 0 kernels found, 1 compiled here"
    assert found["stages"]["triton"]["problems"] == ["compiled here: ptxas"]
    assert found["stages"]["racecheck"]["status"] == "passed"


def test_time_that_is_over_leaves_the_rest_unreached(command: Any) -> None:
    _, found = command("contact", {"import": "hang"}, "--seconds", "3")
    assert found["stages"]["triton"]["status"] == "not reached" and found["complete"] is False


def test_a_wheel_that_does_not_work_there_is_built_there(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the second import is that of the build."""
    built: list[str] = []

    def by_building(run: Run, because: str) -> Outcome:
        built.append(because)
        return Outcome("passed", f"built here, since {because}")

    def start(run: Run, stage: Stage, program: Sequence[str], env: dict[str, str]) -> Outcome:
        if stage.name == "import" and not built:
            return Outcome("failed", "GLIBC_2.99 was not found", data={"unusable": True})
        return Outcome("passed")

    monkeypatch.setattr(place, "by_building", by_building)
    monkeypatch.setattr(main, "start", start)
    code, found = command("contact", {})
    assert code == 0 and len(built) == 1 and "GLIBC_2.99" in built[0]
    assert found["stages"]["import"]["status"] == "passed"
    assert "built here" in found["stages"]["place"]["reason"]


def test_only_what_carries_the_mark_is_ended() -> None:
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    mine = subprocess.Popen(program, env={**os.environ, MARK: "1-mine"}, start_new_session=True)
    other = subprocess.Popen(program, env={**os.environ, MARK: "1-mine-too"}, start_new_session=True)
    try:
        end_marked("1-mine")
        assert mine.wait(10) == -9 and other.poll() is None
    finally:
        other.kill()
        other.wait()
