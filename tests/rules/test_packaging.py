"""What is built and installed works outside the checkout, with a compiler and without one."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# An editable install of this environment must not lend its modules to the unpacked wheel.
ALONE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f"{getattr(f, '__module__', '')}{type(f).__module__}"]
"""

USE_ALL = """
import torch, tilewright as tw
from tilewright.registry import TABLE, backends, find
import tilewright.triton_kernels
assert "site" in tw.__file__, tw.__file__
available = [b for b, reason in backends().items() if reason is None]
for op, rows in TABLE.items():
    for backend in rows:
        if backend in available:
            assert not isinstance(find(op, backend), str)
q = torch.randn(1, 2, 9, 8)
for backend in available:
    tw.softmax(q, backend=backend), tw.attention(q, q, q, backend=backend)
print(",".join(available))
"""


def run(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=900)


def build(target: str, into: Path, **env: str) -> tuple[Path, str]:
    """A wheel or an sdist of the checkout, built with this environment's tools; and what building it printed."""
    # Other tests may build a wheel as well (benchmarks/gpu/make_kit.py), in the same folder.
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "build", f"--{target}", "--no-isolation", "--outdir", str(into)]
        done = run(*command, cwd=ROOT, **env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = into.iterdir()
    return built, done.stdout + done.stderr


def unpack(wheel: Path, into: Path) -> Path:
    """Installing a wheel of pure files is unpacking it; nothing here depends on the checkout or its environment."""
    site = into / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def use(site: Path, tmp_path: Path, **env: str) -> str:
    done = run(
        sys.executable,
        "-c",
        ALONE + USE_ALL,
        cwd=tmp_path,
        PYTHONPATH=str(site),
        TILEWRIGHT_BACKEND="",
        TRITON_INTERPRET="0",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        **env,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    wheel, _ = build("wheel", tmp_path / "dist", TILEWRIGHT_CPU="1")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.startswith("tilewright/_cpu.") for n in names)
    if shutil.which("nvcc") and os.environ.get("TILEWRIGHT_CUDA") != "0":
        assert any(n.startswith("tilewright/_cuda.") for n in names)
    assert "tilewright/triton_kernels/__init__.py" in names
    assert "tilewright/py.typed" in names
    assert "tilewright/csrc/emulation/machine.cpp" in names and not any("_cuda_emulated" in n for n in names)
    assert not [n for n in names if n.split("/")[0] in ("triton_kernels", "tests", "csrc", "benchmarks")]
    site = unpack(wheel, tmp_path)
    assert "cpu" in use(site, tmp_path).split(",")
    # The emulator is built from what the wheel holds; the second time it is there.
    first, second = (use(site, tmp_path, TILEWRIGHT_CUDA_EMULATE="1") for _ in range(2))
    assert "cuda" in first.split(",") and first == second


def test_binary_links_neither_torch_nor_openmp() -> None:
    import tilewright._cpu as module

    printed = subprocess.run(["ldd", module.__file__], capture_output=True, text=True, check=True).stdout
    # The first word of a line is the library; what follows has paths and addresses, where any letters may occur.
    linked = [line.split()[0].rpartition("/")[2] for line in printed.splitlines()]
    for library in ("libtorch", "libc10", "libgomp", "libomp", "libcuda", "libcudart"):
        assert not [name for name in linked if name.startswith(library)], printed


def test_without_a_compiler_the_package_still_works_and_says_what_is_missing(tmp_path: Path) -> None:
    wheel, printed = build("wheel", tmp_path / "dist", CXX="/nowhere/c++")
    assert "tilewright: warning: tilewright._cpu is left out: no C++ compiler was found" in printed
    assert not any(n.startswith("tilewright/_cpu.") for n in zipfile.ZipFile(wheel).namelist())
    site = unpack(wheel, tmp_path)
    assert use(site, tmp_path) == "reference"
    show = ALONE + "import tilewright as tw; print(tw.backends()['cpu'])"
    done = run(sys.executable, "-c", show, cwd=tmp_path, PYTHONPATH=str(site))
    assert "no C++ compiler was found" in done.stdout


def test_a_compiler_can_be_insisted_on(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    done = run(*arguments, cwd=ROOT, CXX="/nowhere/c++", TILEWRIGHT_CPU="1")
    assert done.returncode != 0
    assert "TILEWRIGHT_CPU=1, but no C++ compiler was found" in done.stdout + done.stderr


def test_sdist_holds_every_source(tmp_path: Path) -> None:
    sdist, _ = build("sdist", tmp_path / "dist")
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.fail("this test compares the sdist with git's list of files; run it in a checkout")
    wanted = {
        f
        for f in listed.stdout.split()
        if f.split("/")[0] in ("csrc", "python", "triton_kernels", "setup.py", "LICENSE")
    }
    assert wanted and not wanted - names, f"the sdist lacks {sorted(wanted - names)}"
