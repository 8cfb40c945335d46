"""`make gpu-kit` around its long steps: what has not changed is kept, and what went wrong is said. And whether a
kit fits where it is taken."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu import kit, make_kit, place, pythons
from gpu.run import Run


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """Makes a kit with steps that take no time; answers the exit code and which steps ran."""
    steps: list[str] = []
    digests = {"sources": "1", "lists": "1"}

    def done(self: make_kit.Made, log: str, command: list[str], **env: str) -> None:
        steps.append(log)
        if log == "wheel":
            assert env["TILEWRIGHT_CUDA_ARCHS"] == "90a" and "-lineinfo" in env["NVCC_APPEND_FLAGS"]
            (self.folder / "tilewright-0.1.0-cp312-cp312-linux_x86_64.whl").write_text("wheel")
        elif log == "peers":
            (self.folder / kit.PEERS / "liger_kernel-1.0-py3-none-any.whl").write_text("peer")

    def compile_all(python: str, env: dict[str, str], log: Path, events: Path, sample: int) -> list[str]:
        steps.append("compile")
        assert "TRITON_INTERPRET" not in env and env["TILEWRIGHT_TUNED"] == "off"
        return list(failing)

    def pack(python: str, env: dict[str, str], cache: Path, events: Path, archive: Path) -> dict[str, int]:
        archive.write_bytes(b"x" * size[0])
        return {"kernels": 3, "launchers": 2}

    failing: list[str] = []
    size = [10]
    monkeypatch.setattr(make_kit.Made, "_done", done)
    monkeypatch.setattr(make_kit, "compile_all", compile_all)
    monkeypatch.setattr(make_kit, "pack", pack)
    monkeypatch.setattr(pythons, "versions", lambda python: {"torch": pythons.TORCH, "triton": pythons.TRITON})
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: type("Done", (), {"stdout": "cpython-312-x"}))
    monkeypatch.setattr(
        kit, "digest", lambda names=kit.SOURCES: digests["sources" if names == kit.SOURCES else "lists"]
    )

    def run(fails: tuple[str, ...] = (), megabytes: float = 0.0, **changed: str) -> tuple[int, list[str]]:
        steps.clear()
        digests.update(changed)
        failing[:], size[0] = fails, int(megabytes * 2**20)
        words = ["--kit", str(tmp_path / "kit"), "--work", str(tmp_path / "work"), "--python", sys.executable]
        return make_kit.main(words), list(steps)

    return run


def test_what_has_not_changed_is_kept(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make() == (0, ["wheel", "peers", "compile"])
    described = json.loads((tmp_path / "kit" / kit.DESCRIPTION).read_text())
    assert (described["python"], described["torch"], described["kernels"]) == ("cpython-312-x", pythons.TORCH, 3)
    assert "in total" not in capsys.readouterr().err
    assert make() == (0, [])
    assert make(lists="2") == (0, ["compile"]), "other calls, the same package"
    assert make(sources="2") == (0, ["wheel", "compile"])
    (tmp_path / "kit" / kit.CACHE).unlink()
    assert make() == (0, ["compile"])


def test_a_kit_that_is_not_whole_is_a_failure_in_words(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = make(fails=("case a/b/c: KeyError: 'small'",))
    assert code == 1 and "not compiled: case a/b/c: KeyError: 'small'" in capsys.readouterr().err
    assert make() == (0, ["compile"]), "what failed is tried again"
    assert make(sources="3", megabytes=60) == (1, ["wheel", "compile"])
    assert "that is more than 60 MB" in capsys.readouterr().err


def test_without_a_python_312_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"no python3\.12 was found .* name one with --python"):
        pythons.python_312()
    python = tmp_path / "versions" / "3.12.1" / "bin" / "python3.12"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert pythons.python_312() == str(python)


def test_a_kit_fits_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kit"
    folder.mkdir()
    described = {"python": kit.python_tag(), "sources": "now", "wheel": "tilewright-0.1.0-py3-none-any.whl"}

    def unfit(**changed: str) -> str | None:
        (folder / kit.DESCRIPTION).write_text(json.dumps({**described, **changed}))
        return kit.unfit(folder, "now")

    assert "there is no kit in" in (kit.unfit(folder, "now") or "")
    assert (
        unfit(python="cpython-39-linux-x86_64")
        == f"the kit is for cpython-39-linux-x86_64, and this is {kit.python_tag()}"
    )
    assert unfit(sources="before") == "the kit was made from other sources than this checkout's"
    assert unfit() == f"the kit lacks {described['wheel']}"
    with zipfile.ZipFile(folder / described["wheel"], "w") as wheel:
        wheel.writestr("tilewright/__init__.py", "")
    peers = folder / kit.PEERS
    peers.mkdir()
    for name in ("one-1.0-py3-none-any", "two-2.0-cp39-cp39-manylinux_2_28_x86_64"):
        with zipfile.ZipFile(peers / f"{name}.whl", "w") as wheel:
            wheel.writestr(f"{name[:3]}.py", "")
    assert unfit() is None
    run = Run("contact", tmp_path, tmp_path / "work", 0.0, folder)
    outcome = place.from_kit(run, "now")
    assert (outcome.status, outcome.reason) == ("passed", "from the kit, beside one-1.0")
    assert {f.name for f in place.site(run).iterdir()} == {"tilewright", "one.py"}


def test_a_change_of_a_source_is_noticed_and_what_is_built_is_not(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "setup.py").write_text("1")
    source = tmp_path / "csrc" / "a.cu"
    source.write_text("1")
    before = kit.digest(root=tmp_path)
    (tmp_path / "csrc" / "a.so").write_text("built")
    assert kit.digest(root=tmp_path) == before
    source.write_text("2")
    assert kit.digest(root=tmp_path) != before


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("/usr/bin/python3: No module named pip\n", "/usr/bin/python3: No module named pip"),
        (
            "  Preparing metadata: finished with status 'error'\n  error: subprocess-exited-with-error\n\n"
            "      configuration error: `project.license` must be one of:\nerror: metadata-generation-failed\n"
            "hint: See above for details.\n",
            "configuration error: `project.license` must be one of:",
        ),
        (
            '/a.cu(7): error: expected a ";"\n2 errors\nhint: See above for details.\n',
            '/a.cu(7): error: expected a ";"',
        ),
        ("Killed\n", "Killed"),
        ("", "it printed nothing"),
    ],
)
def test_a_build_that_fails_says_why(log: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "build.log").write_text(log)
    assert place.why_it_failed(tmp_path / "build.log") == reason
