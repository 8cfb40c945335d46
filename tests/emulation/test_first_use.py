"""An installation without the emulator builds it where it is first used: once, and only for who asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tilewright as tw
from tilewright import cmake, emulator, registry
from tilewright.backends import cuda
from tilewright.cli.app import app

Build = Callable[..., Path]


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An installation that has the sources only; what is built, in which folder, without a compiler."""
    sources, found = tmp_path / "csrc", []
    (sources / "cuda").mkdir(parents=True)
    (sources / "cuda" / "one.cu").write_text("one")

    def build(source: Path, folder: Path, target: str, options: Sequence[str], show: Callable[[str], object]) -> Path:
        assert not folder.exists(), "what an interrupted build left is in the way"
        folder.mkdir()
        found.append(folder)
        show("compiling\n")
        (folder / target).write_text("the module")
        return folder / target

    monkeypatch.setattr(emulator, "SOURCES", sources)
    monkeypatch.setattr(emulator, "installed", lambda: False)
    monkeypatch.setattr(emulator, "missing_reason", lambda target: None)
    monkeypatch.setattr(emulator, "_import", lambda file: file.read_text())
    monkeypatch.setattr(cmake, "build", build)
    monkeypatch.setattr(cmake, "missing_tools", list)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, emulator.NAME, raising=False)
    return found


def test_the_first_use_builds_and_says_so_in_one_line(builds: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert emulator.state() == "built where it is first used"
    assert emulator.load() == "the module"
    folder = emulator.cached().parent
    assert emulator.state() == f"built in {folder}"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"tilewright: building the emulator of CUDA kernels in {folder}, once: about ")
    assert "seconds of processor time" in line
    assert emulator.load() == "the module"
    assert len(builds) == 1 and not builds[0].exists(), "a second use loads what the first has built, and nothing else"
    assert capfd.readouterr().err == ""


def test_an_interrupted_build_is_begun_again(builds: list[Path]) -> None:
    work = emulator.cached().with_name("build")
    work.mkdir(parents=True)
    (work / "half").write_text("a module")
    assert emulator.load() == "the module"


@pytest.mark.parametrize("change", ["source", "name", "compiler"])
def test_other_sources_and_compilers_are_built_apart(
    change: str, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, file = emulator.cached(), emulator.SOURCES / "cuda" / "one.cu"
    assert emulator.cached() == before and before.name.endswith(cmake.SUFFIX)
    if change == "source":
        file.write_text("two")
    elif change == "name":
        file.rename(file.with_name("two.cu"))
    else:
        monkeypatch.setenv("CXX", "another")
    assert emulator.cached() != before, f"a change of the {change} would go on with the old module"


def test_a_failed_build_says_why_and_is_tried_again(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Path:
        raise cmake.BuildError("the build failed: one.cu:1: error: no")

    works = cmake.build
    monkeypatch.setattr(cmake, "build", fail)
    log = emulator.cached().with_name("build.log")
    with pytest.raises(ImportError) as error:
        emulator.load()
    said = f"the emulator could not be built: the build failed: one.cu:1: error: no; all of it is in {log}"
    assert str(error.value) == said and log.is_file()
    monkeypatch.setattr(cmake, "build", works)
    assert emulator.load() == "the module"


def test_what_is_missing_is_named(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmake, "missing_tools", lambda: ["cmake was not found", "pybind11 was not found"])
    with pytest.raises(ImportError) as error:
        emulator.load()
    said = str(error.value)
    assert said.startswith(
        "the emulator is built where it is first used, but cmake was not found, and pybind11 was not"
    )
    assert "pip install 'tilewright[emulator]'" in said and not builds
    assert emulator.state() == f"none: {said}"


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ImportError, match=rf"the emulator could not be built in {tmp_path / 'file'}.*: .*Not a directory"
    ):
        emulator.load()


def test_who_left_it_out_gets_the_reason_and_no_build(builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "TILEWRIGHT_CUDA_EMULATED=0 was set when the package was built"
    monkeypatch.setattr(emulator, "missing_reason", lambda target: reason)
    with pytest.raises(ImportError, match=reason):
        emulator.load()
    assert emulator.state() == f"none: {reason}" and not builds


def _forget() -> None:
    for cached in (cuda.emulated, cuda.unavailable, cuda.kernels, registry.unavailable, registry.find):
        cached.cache_clear()


@pytest.mark.parametrize("asked", ["", "1"])
def test_only_a_process_that_asks_for_it_builds(
    asked: str, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cuda.EMULATE, asked)
    _forget()
    try:
        shown = CliRunner().invoke(app, ["info"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        tw.explain("softmax", torch.zeros(2, 3))
        state = tw.backends()["cuda"]
    finally:
        _forget()
    if asked:
        assert len(builds) == 1 and state is None, "the answer has to be true, and only building tells"
    else:
        assert not builds, "nobody asked for the emulator, and asking what there is has built it"
        assert "built where it is first used" in shown.output


TOGETHER = """
import shutil, sys, time
from pathlib import Path
from tilewright import cmake, emulator
prebuilt, counted = map(Path, sys.argv[1:3])
def build(source, folder, target, options, show):
    with counted.open("a") as file:
        file.write("built ")
    folder.mkdir()
    time.sleep(1)
    return Path(shutil.copy(prebuilt, folder))
emulator.SOURCES = prebuilt.parent / "cli"  # some files
emulator.installed = lambda: False
emulator.missing_reason = lambda target: None
cmake.build, cmake.missing_tools = build, list
print(emulator.load().SoftmaxParams.__name__)
"""


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    module = pytest.importorskip("tilewright._cuda_emulated", reason="this build has no emulator", exc_type=ImportError)
    command = [sys.executable, "-c", TOGETHER, module.__file__, str(tmp_path / "counted")]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    both = [subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=100)[0].strip() for process in both] == ["SoftmaxParams"] * 2
    assert (tmp_path / "counted").read_text() == "built ", "each has built a module: the lock does not hold"
