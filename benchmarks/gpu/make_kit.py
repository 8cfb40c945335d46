"""`make gpu-kit`: one folder for a machine with a GPU and no network: the package, built for that machine's Python and
chip, and Triton's cache, compiled here. What has not changed since the last time is kept."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import kit, pythons
from .pythons import ENVIRONMENT, PYTHON, STAMP, TORCH, TRITON, WORK
from .run import CACHE_LOG, MARK, ROOT, Progress, end_marked, process, processors, why, write_whole

#: Of other packages, what is measured beside ours and is small: pure Python.
SMALL_PEERS = ("liger-kernel",)

#: For Hopper alone, with source lines for compute-sanitizer and Nsight. The emulator is compared with the GPU.
BUILD = {
    "TILEWRIGHT_CPU": "1",
    "TILEWRIGHT_CUDA": "1",
    "TILEWRIGHT_CUDA_EMULATED": "1",
    "TILEWRIGHT_CUDA_ARCHS": "90a",
    "NVCC_APPEND_FLAGS": "-lineinfo",
}
#: Of a rehearsal's small kit: what a rehearsal runs, which is compiled in half a minute.
BUILD_SMALL = {"TILEWRIGHT_CPU": "0", "TILEWRIGHT_CUDA": "0", "TILEWRIGHT_CUDA_EMULATED": "1"}

#: A call compiles its kernels one after another, at most a minute each.
SECONDS_A_CALL = 900.0

#: What may be carried to the machine, with some room for the checkout.
MOST_BYTES = 60_000_000


def main(arguments: Sequence[str]) -> int:
    given = parsed(arguments)
    started = time.monotonic()
    work = given.work.resolve()
    for folder in (given.kit, work):
        folder.mkdir(parents=True, exist_ok=True)
    made = Made(given.kit.resolve(), work, given.sample, given.small)
    try:
        python = made.python(sys.executable, strict=False) if given.current else made.python(given.python)
        if given.environment:
            print(python)
            return 0
        made.wheel(python)
        made.peers(python)
        failed = made.cache(python)
    except RuntimeError as error:
        print(f"make gpu-kit: {error}", file=sys.stderr)
        return 1
    made.describe(python)
    return made.report(time.monotonic() - started, failed)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu kit", description=__doc__, epilog="See docs/gpu.md.")
    parser.add_argument("--kit", type=Path, default=kit.KIT, help="the folder")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what is kept")
    parser.add_argument(
        "--python", help=f"a Python {PYTHON}, or one that has torch {TORCH} and triton {TRITON} already"
    )
    parser.add_argument("--environment", action="store_true", help=f"only a Python {PYTHON} with torch and triton")
    parser.add_argument("--current", action="store_true", help="for this Python and its torch")
    parser.add_argument("--small", action="store_true", help="with the emulator alone: a rehearsal's kit")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="what `--sample N` asks for: for rehearsals")
    return parser.parse_args(arguments)


class Made:
    """What has been made so far, and how long each part took."""

    def __init__(self, folder: Path, work: Path, sample: int, small: bool) -> None:
        self.folder, self._work, self._sample, self._small = folder, work, sample, small
        self._before: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            self._before = kit.describe(folder)
        self._found: dict[str, Any] = {"sources": kit.digest(), "lists": kit.digest(kit.LISTS), "sample": sample}
        self._found["seconds"] = {}

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        print(f"{what} ...", file=sys.stderr, flush=True)
        begin = time.monotonic()
        yield
        self._found["seconds"][what] = round(time.monotonic() - begin, 1)

    def _unchanged(self, *names: str) -> bool:
        """Since the last time, of what decides over a part."""
        return all(self._found.get(n) is not None and self._found[n] == self._before.get(n) for n in names)

    def python(self, asked: str | None, strict: bool = True) -> str:
        """One that has what the machine has; with an environment of its own if need be. Not strict: the one asked for,
        whatever it has."""
        if asked is not None and (not strict or pythons.versions(asked) == {"torch": TORCH, "triton": TRITON}):
            found = asked
        else:
            found = self._environment(asked or pythons.python_312())
        self._found |= {"python": pythons.tag_of(found), **pythons.versions(found)}
        return found

    def _environment(self, base: str) -> str:
        prepared = pythons.environment(self._work)
        if prepared is not None:
            return prepared
        folder, wanted = self._work / ENVIRONMENT, pythons.wanted_packages()
        python = str(folder / "bin" / "python")
        with self._timed("environment"):
            shutil.rmtree(folder, ignore_errors=True)
            self._done("environment", [base, "-m", "venv", str(folder)])
            self._done("environment", [python, "-m", "pip", "--disable-pip-version-check", "install", *wanted])
        (folder / STAMP).write_text(json.dumps(wanted))
        return python

    def _done(self, log: str, command: Sequence[str], **env: str) -> None:
        file = self._work / f"{log}.log"
        if process.run_logged(list(command), file, 3600.0, {**os.environ, **env}, ROOT) != 0:
            end = "\n".join(file.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{' '.join(command[:6])} ... failed:\n{end}")

    def wheel(self, python: str) -> None:
        env = BUILD_SMALL if self._small else BUILD
        self._found |= {"build": env, "wheel": self._before.get("wheel")}
        same = self._unchanged("sources", "python", "build", "wheel")
        if same and (self.folder / self._found["wheel"]).exists():
            return
        for old in self.folder.glob("tilewright-*.whl"):
            old.unlink()
        pip = ("-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-build-isolation", "--no-deps")
        with self._timed("wheel"), building():
            # What setuptools has collected for an earlier wheel: files that are gone since would be in this one.
            for collected in (ROOT / "build").glob("lib.*"):
                shutil.rmtree(collected)
            command = [python, *pip, "-w", str(self.folder), str(ROOT)]
            self._done("wheel", command, **env)
        (built,) = self.folder.glob("tilewright-*.whl")
        self._found["wheel"] = built.name

    def peers(self, python: str) -> None:
        """Other packages' wheels. One that cannot be fetched is left out: it is measured beside ours, and no part."""
        if self._small:
            return
        folder = self.folder / kit.PEERS
        folder.mkdir(exist_ok=True)
        pip = ("-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary=:all:")
        for name in SMALL_PEERS:
            if list(folder.glob(f"{name.replace('-', '_')}-*.whl")):
                continue
            try:
                self._done("peers", [python, *pip, "-d", str(folder), name])
            except RuntimeError as error:
                print(f"{name} is left out: {str(error).splitlines()[-1]}", file=sys.stderr)

    def cache(self, python: str) -> list[str]:
        """Compiled by as many processes as there are processors. Answers what failed, in words."""
        archive = self.folder / kit.CACHE
        self._found |= {n: self._before.get(n) for n in ("kernels", "launchers")}
        same = self._unchanged("sources", "lists", "sample", "python", "torch", "triton", "kernels", "launchers")
        if same and archive.exists() and not self._before.get("failed"):
            return []
        site, log = self._work / "site", self._work / "compile.log"
        shutil.rmtree(site, ignore_errors=True)
        log.unlink(missing_ok=True)
        subprocess.run([python, "-m", "zipfile", "-e", str(self.folder / self._found["wheel"]), str(site)], check=True)
        events = self._work / CACHE_LOG
        events.unlink(missing_ok=True)
        mark = f"{os.getpid()}-kit"
        env = {
            **os.environ,
            "PYTHONPATH": str(site),
            "TRITON_CACHE_DIR": str(self._work / "triton-cache"),
            # Of what Triton keeps otherwise, text of every stage of compiling, nothing is needed.
            "TRITON_STORE_BINARY_ONLY": "1",
            "TILEWRIGHT_TUNED": "off",
            "OMP_NUM_THREADS": "1",
        }
        env.pop("TRITON_INTERPRET", None)
        with self._timed("Triton's cache"):
            try:
                failed = compile_all(python, env | {MARK: mark}, log, events, self._sample)
            finally:
                end_marked(mark)
        with self._timed("packing"):
            packed = pack(python, env, Path(env["TRITON_CACHE_DIR"]), events, archive)
        self._found |= {**packed, "failed": failed}
        return failed

    def describe(self, python: str) -> None:
        seconds = {**self._before.get("seconds", {}), **self._found["seconds"]}
        sizes = {f.name: f.stat().st_size for f in sorted(self.folder.rglob("*")) if f.is_file()}
        sizes.pop(kit.DESCRIPTION, None)
        self._found |= {"seconds": seconds, "bytes": sizes, "made_with": python}
        write_whole(self.folder / kit.DESCRIPTION, (json.dumps(self._found, indent=1) + "\n").encode())

    def report(self, seconds: float, failed: Sequence[str]) -> int:
        found = self._found
        total = sum(found["bytes"].values())
        for name, size in found["bytes"].items():
            print(f"{size / 1e6:8.1f} MB  {name}")
        print(f"{total / 1e6:8.1f} MB  in {self.folder}: {found['kernels']} kernels, {found['launchers']} launchers")
        parts = ", ".join(f"{what} {s:.0f} s" for what, s in found["seconds"].items())
        print(f"this time {seconds:.0f} s on {processors()} processors; what was made when it last changed: {parts}")
        for reason in failed:
            print(f"not compiled: {reason}", file=sys.stderr)
        if total > MOST_BYTES:
            print(f"make gpu-kit: that is more than {MOST_BYTES / 1e6:.0f} MB", file=sys.stderr)
        return int(bool(failed) or total > MOST_BYTES)


@contextlib.contextmanager
def building(root: Path = ROOT) -> Iterator[None]:
    """Alone with the checkout's build/: two builds in it at the same time would disturb each other."""
    (root / "build").mkdir(exist_ok=True)
    with (root / "build" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def describe_python(folder: Path) -> str:
    """The Python that a kit was made with."""
    return str(kit.describe(folder)["made_with"])


def compile_all(python: str, env: dict[str, str], log: Path, events: Path, sample: int) -> list[str]:
    def worker() -> Any:
        return process.Worker([python, str(Path(__file__).parent), "--compiler"], log, env, ROOT)

    first = worker()
    try:
        listed = first.ask({"do": "precompile", "what": "list", "sample": sample}, 300.0)
    finally:
        first.close()
    if "requests" not in listed.result:
        raise RuntimeError(f"what to compile cannot be listed: {why(listed)}; see {log}")
    requests = [{**r, "log": str(events)} for r in listed.result["requests"]]
    failed: list[str] = []
    show, done = Progress("compile", len(requests), every=30.0), 0

    def finished(request: dict[str, Any], answer: Any) -> None:
        nonlocal done
        done += 1
        if why(answer):
            failed.append(f"{request['what']} {request['subject']}: {why(answer)}")
        show(done, f"{len(failed)} failed" if failed else "")

    process.run_pool(worker, processors(), requests, SECONDS_A_CALL, float("inf"), finished)
    return failed


def pack(python: str, env: dict[str, str], cache: Path, events: Path, archive: Path) -> dict[str, int]:
    """In a process that can import Triton: its names of things are needed."""
    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\n"
        "from gpu.cache import pack\n"
        "cache, events, archive = map(Path, sys.argv[1:])\n"
        "print(*pack(cache, map(json.loads, events.open()), archive))"
    )
    command = [python, "-c", code, str(cache), str(events), str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"packing failed: {done.stderr.strip()[-500:]}")
    kernels, launchers = map(int, done.stdout.split())
    return {"kernels": kernels, "launchers": launchers}
