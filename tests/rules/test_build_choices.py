"""What setup.py decides about the compiled modules: variables, missing tools, what CUDA kernels are compiled for."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
VARIABLES = ("CXX", "CUDACXX", "CUDA_HOME", "TILEWRIGHT_CPU", "TILEWRIGHT_CUDA", "TILEWRIGHT_CUDA_ARCHS")

Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes a program that prints a text; those alone are on PATH, and no variable is set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, prints: str) -> Path:
        file = folder / name
        file.write_text(f"#!/bin/sh\n/bin/cat <<'EOF'\n{prints}\nEOF\n")
        file.chmod(0o755)
        return file

    return make


@pytest.fixture
def build(program: Program, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """setup.py's functions."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


KNOWN = "sm_75\nsm_80\nsm_86\nsm_90\nsm_100"


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        ("", None, ["80", "90a"]),
        ("", "9.0\n9.0", ["90a"]),
        ("", "8.6\n9.0\n7.5", ["86", "90a"]),
        ("", "12.0", ["80", "90a"]),  # newer than nvcc: it runs the PTX
        ("", "9.0\n12.0", ["80", "90a"]),  # of which 90a by itself has none for it
        ("", "8.6\n12.0", ["86"]),
        ("", "NVIDIA-SMI has failed because it could not communicate with the driver", ["80", "90a"]),
        ("80;90a", "8.6", ["80", "90a"]),
        ("90, 80", None, ["90", "80"]),
        ("80;80", None, ["80"]),
    ],
)
def test_architectures(
    asked: str,
    gpus: str | None,
    expected: list[str],
    program: Program,
    build: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvcc = program("nvcc", KNOWN)
    if gpus is not None:
        program("nvidia-smi", gpus)
    monkeypatch.setenv("TILEWRIGHT_CUDA_ARCHS", asked)
    assert build["cuda_architectures"](str(nvcc)) == expected


@pytest.mark.parametrize(
    ("value", "part"), [("sm_80", "'sm_80'"), ("80;", "''"), ("8.0", "'8.0'"), ("75", "'75'"), ("80 90", "'80 90'")]
)
def test_wrong_architectures_are_refused_before_anything_is_built(
    value: str, part: str, build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CUDA_ARCHS", value)
    with pytest.raises(SystemExit) as error:
        build["requested_architectures"]()
    message = str(error.value)
    assert message.startswith(f"TILEWRIGHT_CUDA_ARCHS='{value}': {part} is no architecture")
    assert "\n" not in message and "'80;90a'" in message


def test_an_architecture_that_nvcc_does_not_know_is_refused(
    program: Program, build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CUDA_ARCHS", "80;120a")
    with pytest.raises(SystemExit, match=r"does not know 120a; it compiles for 75, 80, 86, 90, 100$"):
        build["cuda_architectures"](str(program("nvcc", KNOWN)))


def test_where_nvcc_is_looked_for(
    tmp_path: Path, program: Program, build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = build["find_nvcc"]
    on_path = program("nvcc", KNOWN)
    assert find(os.environ["PATH"]) == str(on_path)
    home = tmp_path / "cuda" / "bin"
    home.mkdir(parents=True)
    (home / "nvcc").write_text("")
    (home / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(home.parent))
    assert find(os.environ["PATH"]) == str(home / "nvcc")
    monkeypatch.setenv("CUDACXX", str(on_path))
    assert find(os.environ["PATH"]) == str(on_path)
    monkeypatch.setenv("CUDACXX", "/nowhere/nvcc")
    with pytest.raises(build["BuildError"], match=r"nvcc was not found \(looked for /nowhere/nvcc\)"):
        find(os.environ["PATH"])


def build_nothing_else(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`setup.py build_ext` with the other modules left out."""
    others = {"TILEWRIGHT_CPU": "0", "TILEWRIGHT_CUDA_EMULATED": "0"}
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(tmp_path)]
    return subprocess.run(
        command, cwd=ROOT, env={**environment, **others, **variables}, capture_output=True, text=True, check=False
    )


def test_without_nvcc_the_rest_is_installed_and_one_line_says_so(tmp_path: Path) -> None:
    done = build_nothing_else(tmp_path, CUDACXX="/nowhere/nvcc")
    assert done.returncode == 0, done.stderr
    reason = "nvcc was not found (looked for /nowhere/nvcc)"
    (line,) = (line for line in done.stderr.splitlines() if "_cuda " in line)
    remaining = "the triton and reference backends work without it"
    assert line == f"tilewright: warning: tilewright._cuda is left out: {reason}; {remaining}"
    written = runpy.run_path(str(tmp_path / "tilewright" / "_build_info.py"))
    assert written["MISSING"]["cuda"] == reason


@pytest.mark.parametrize("asked", ["", "0"])
def test_the_emulator_is_left_to_its_first_use_unless_it_is_not_wanted(asked: str, tmp_path: Path) -> None:
    stale = tmp_path / "tilewright" / f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.parent.mkdir()
    stale.write_text("of an earlier build")
    done = build_nothing_else(tmp_path, TILEWRIGHT_CUDA="0", TILEWRIGHT_CUDA_EMULATED=asked)
    assert done.returncode == 0, done.stderr
    assert not stale.exists(), "an earlier build's module would be installed"
    sources, missing = tmp_path / "tilewright" / "csrc", "TILEWRIGHT_CUDA_EMULATED=0 was set when the package was built"
    reason = runpy.run_path(str(tmp_path / "tilewright" / "_build_info.py"))["MISSING"].get("cuda_emulated")
    if asked == "0":
        assert reason == missing and not sources.exists(), "nobody may build what was not wanted"
        return
    assert reason is None and "_cuda_emulated is built where it is first used" in done.stdout
    wanted = {f.relative_to(ROOT / "csrc") for f in (ROOT / "csrc").rglob("*.*") if f.suffix in (".cu", ".h", ".txt")}
    wanted = {f for f in wanted if f.parts[0] != "cpu"}
    assert wanted <= {f.relative_to(sources) for f in sources.rglob("*")}, "a first use would miss sources"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TILEWRIGHT_CUDA": "1", "CUDACXX": "/nowhere/nvcc"}, "tilewright: TILEWRIGHT_CUDA=1, but nvcc was not found"),
        ({"TILEWRIGHT_CUDA": "yes"}, "TILEWRIGHT_CUDA='yes': accepted are 0 (leave it out), 1"),
        ({"TILEWRIGHT_CUDA": "0", "TILEWRIGHT_CUDA_ARCHS": "hopper"}, "TILEWRIGHT_CUDA_ARCHS='hopper': 'hopper' is no"),
    ],
)
def test_a_wrong_or_unmet_request_is_one_line(variables: dict[str, str], message: str, tmp_path: Path) -> None:
    done = build_nothing_else(tmp_path, **variables)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(message), done.stderr
    assert "Traceback" not in done.stderr
