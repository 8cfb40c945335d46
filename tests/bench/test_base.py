"""A commit beside the checkout: what is built, once, and that its kernels are what is measured."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import tilewright
from tilewright.bench import base as module
from tilewright.bench.base import Base, BaseError, Show, newer_sources, prepare, resolve, run_shown, telling_line
from tilewright.bench.compare import compare
from tilewright.bench.process import Worker
from tilewright.bench.rounds import measure_in_turns
from tilewright.bench.session import Session
from tilewright.bench.summary import Result
from tilewright.registry import unavailable

BACKEND = "cpu" if unavailable("cpu") is None else "reference"


def quiet(done: int, of: int, what: str) -> None:
    pass


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", *identity, "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout of two commits, and an edit that no commit has."""
    root = tmp_path / "checkout"
    package = root / "python" / "tilewright"
    package.mkdir(parents=True)
    git(root, "init", "--quiet")
    for text in ("first", "second"):
        (package / "__init__.py").write_text(f"TEXT = '{text}'\n")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", text)
    git(root, "tag", "v2")
    (package / "__init__.py").write_text("TEXT = 'edited'\n")
    return root


@dataclass
class Builder:
    """In the place of pip: copies the package. fails: how often it raises first, with half of its work done."""

    fails: int = 0
    environments: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, source: Path, site: Path, env: dict[str, str], log: Path, show: Show) -> None:
        self.environments.append(env)
        shutil.copytree(source / "python", site)
        if len(self.environments) <= self.fails:
            raise BaseError("no compiler")


def test_the_commit_is_built_and_not_what_lies_in_the_checkout(root: Path) -> None:
    first = prepare(root, "HEAD~1", ("cpu",), quiet, Builder())
    second = prepare(root, "v2", ("cpu",), quiet, Builder())
    texts = [(b.site / "tilewright" / "__init__.py").read_text() for b in (first, second)]
    assert texts == ["TEXT = 'first'\n", "TEXT = 'second'\n"]
    assert second.commit == git(root, "rev-parse", "HEAD")
    assert (root / "python" / "tilewright" / "__init__.py").read_text() == "TEXT = 'edited'\n"
    assert git(root, "worktree", "list").count("\n") == 0 and git(root, "branch", "--show-current")


def test_a_commit_is_built_once_for_each_choice_of_options(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder()
    for rev in ("HEAD", "v2", git(root, "rev-parse", "HEAD")):
        prepare(root, rev, ("cpu",), quiet, builder)
    assert len(builder.environments) == 1
    prepare(root, "HEAD", ("cpu", "cuda"), quiet, builder)
    monkeypatch.setenv("CXX", "another")
    prepare(root, "HEAD", ("cpu",), quiet, builder)
    variables = ("TILEWRIGHT_CPU", "TILEWRIGHT_CUDA", "TILEWRIGHT_CUDA_EMULATED")
    assert [tuple(e[v] for v in variables) for e in builder.environments] == [
        ("1", "0", "0"),
        ("1", "1", "0"),
        ("1", "0", "0"),
    ]


def test_a_build_that_failed_is_not_taken_for_one(root: Path) -> None:
    builder = Builder(fails=1)
    with pytest.raises(BaseError, match="no compiler"):
        prepare(root, "HEAD", (), quiet, builder)
    assert (prepare(root, "HEAD", (), quiet, builder).site / "tilewright").is_dir()
    assert len(builder.environments) == 2


def test_what_cannot_be_built_is_said(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rev in ("nothing", "--all", "HEAD:python"):
        with pytest.raises(BaseError, match=rf"'{rev}' is no commit, branch or tag"):
            resolve(root, rev)
    git(root, "rm", "-r", "--quiet", "--force", "python")
    (root / "readme").write_text("x")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "without")
    with pytest.raises(BaseError, match="HEAD has no package tilewright"):
        prepare(root, "HEAD", (), quiet, lambda *_: None)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site" / "tilewright" / "bench" / "base.py"))
    with pytest.raises(BaseError, match="git checkout"):
        module.checkout()


def test_a_build_shows_its_steps_keeps_its_log_and_tells_what_failed(tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    script = "print('[1/2] Building CXX object x/softmax.o'); print('  a.cpp:3: error: no'); raise SystemExit(2)"
    log = tmp_path / "log"
    with pytest.raises(BaseError, match=r"a.cpp:3: error: no; all of it is in .*log"):
        run_shown([sys.executable, "-c", script], dict(os.environ), log, lambda *step: steps.append(step))
    assert steps == [(1, 2, "softmax.o")] and "Building CXX" in log.read_text()
    said = ["error: subprocess-exited-with-error", "x: error: no", "tilewright: TILEWRIGHT_CPU=1, but x", "hint"]
    assert telling_line(said) == "tilewright: TILEWRIGHT_CPU=1, but x"
    assert telling_line(["begun", "killed", ""]) == "killed" and telling_line([]) == ""


def test_a_module_older_than_its_sources_is_mentioned(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "python" / "tilewright").mkdir(parents=True)
    source, built = tmp_path / "csrc" / "a.cpp", tmp_path / "python" / "tilewright" / "_cpu.abi.so"
    for file in (source, built):
        file.touch()
    os.utime(source, (1, 1))
    assert newer_sources(tmp_path, ("cpu", "cuda")) == []
    os.utime(built, (0, 0))
    assert "a.cpp is newer than _cpu.abi.so" in newer_sources(tmp_path, ("cpu", "cuda"))[0]
    assert newer_sources(tmp_path, ("cuda",)) == []


@pytest.fixture
def old(tmp_path: Path) -> Base:
    """The running package, without its benchmark and its CUDA modules, in a folder of its own."""
    folder = tmp_path / "old"
    package = Path(tilewright.__file__).parent
    left_out = shutil.ignore_patterns("bench", "__pycache__", "_cuda*")
    shutil.copytree(package, folder / "site" / "tilewright", ignore=left_out)
    kernels = Path(importlib.import_module("tilewright.triton_kernels").__path__[0])
    shutil.copytree(kernels, folder / "site" / "tilewright" / "triton_kernels", ignore=left_out, dirs_exist_ok=True)
    return Base("a" * 40, folder / "site", folder / "build.log")


def session(make: Callable[[Path], Worker], tmp_path: Path, name: str) -> Session:
    settings = {"device": "cpu", "backends": [BACKEND], "shapes": "tiny", "seconds": 0.1}
    settings["providers"] = [f"tilewright {BACKEND}"]
    return Session(lambda env: make(tmp_path / f"{name}.log"), settings, time.monotonic() + 200, quiet)


def test_the_old_kernels_are_measured_by_the_new_benchmark(old: Base, tmp_path: Path) -> None:
    """The old softmax sleeps: the new one is the faster."""
    ops = old.site / "tilewright" / "ops" / "softmax.py"
    slow = "def softmax(*a, **k):\n    import time\n    time.sleep(0.005)\n    return fast(*a, **k)\n"
    ops.write_text(f"{ops.read_text()}\nfast = softmax\n{slow}")
    serve = [sys.executable, "-c", "from tilewright.bench.rounds_worker import serve; serve()"]
    before = session(lambda log: old.worker(log, dict(os.environ)), tmp_path, "before")
    after = session(lambda log: Worker(serve, log, dict(os.environ), tmp_path), tmp_path, "after")
    name = "softmax forward 100 float32"
    with contextlib.closing(before), contextlib.closing(after):
        environment = before.environment()
        assert name in [i["name"] for i in before.items(("softmax",))], (tmp_path / "before.log").read_text()
        ((rows, new_rows),) = measure_in_turns(before, after, [name])
    assert environment["cuda_kernels"] is None, "what the old package lacks was taken from the running one"
    sides = [Result(environment, "", {"device": "cpu"}, r) for r in (rows, new_rows)]
    (change,) = compare(*sides, 0.05, paired=True).changes
    assert change.verdict == "faster", (rows, new_rows)
    assert change.before is not None and change.before > 0.005
    (row,) = rows
    assert len(row["device"]["values"]) == 12 and row["error"] < row["limit"]


def test_a_commit_is_refused_with_what_it_lacks(old: Base, tmp_path: Path) -> None:
    """It is not lent by the running package, which an editable install finds for every name."""
    shutil.rmtree(old.site / "tilewright" / "models")
    before = session(lambda log: old.worker(log, dict(os.environ)), tmp_path, "before")
    with contextlib.closing(before), pytest.raises(RuntimeError, match=r"ModuleNotFoundError.*tilewright.models"):
        before.items()
