"""The CUDA module itself: it loads without a GPU, and says why nothing runs; and each reason reaches the user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tilewright import build_info
from tilewright.backends import cuda

#: Enough of a driver for the runtime to ask its version; the runtime finds it too old before it needs more.
OLD_DRIVER = "int cuInit(unsigned f) { (void)f; return 0; } int cuDriverGetVersion(int* v) { *v = 11040; return 0; }"


@pytest.fixture
def module() -> Any:
    return pytest.importorskip(
        "tilewright._cuda", reason="the CUDA module was left out of this build", exc_type=ImportError
    )


def test_it_links_neither_torch_nor_cuda(module: Any) -> None:
    dynamic = subprocess.run(["readelf", "-d", module.__file__], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    stems = {library.split(".so")[0].split("-")[0] for library in needed}
    assert stems <= {"libc", "libstdc++", "libgcc_s", "libm", "libpthread", "libdl", "librt", "ld"}, needed


def test_nothing_of_it_is_visible_but_its_start(module: Any) -> None:
    shown = subprocess.run(["nm", "-D", "--defined-only", module.__file__], capture_output=True, text=True, check=True)
    symbols = [line.split()[1:] for line in shown.stdout.splitlines()]
    # Templates of the C++ library are weak symbols in every object that uses them.
    assert [name for kind, name in symbols if kind not in "WVu"] == ["PyInit__cuda"]
    assert not [name for _, name in symbols if "tilewright" in name or "pybind11" in name]


def test_it_says_what_it_was_built_for(module: Any) -> None:
    targets = module.targets().split()
    assert [t for t in targets if t.startswith("sm_")] and [t for t in targets if t.startswith("compute_")]
    assert cuda.built_for() == {"targets": module.targets(), "cuda_version": module.cuda_version()}
    if targets == ["sm_80", "sm_90a", "compute_80"]:
        served = [(8, 0), (8, 6), (9, 0), (10, 0), (12, 1)]
        assert [c for c in [(7, 0), (7, 5), *served] if module.serves(*c)] == served


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, and a driver that it works with")
@pytest.mark.parametrize("driver", [None, OLD_DRIVER])
def test_a_driver_that_is_missing_or_old_is_a_reason(driver: str | None, module: Any, tmp_path: Path) -> None:
    expected = "no CUDA driver is installed"
    if driver is not None:
        if shutil.which("cc") is None:
            pytest.skip("no C compiler was found to build a driver with")
        (tmp_path / "driver.c").write_text(driver)
        built = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c")]
        subprocess.run(built, check=True)
        expected = (
            f"the CUDA driver is of CUDA 11.4, too old for the CUDA {module.cuda_version()} that the kernels were "
            "built with; update the driver, or install tilewright with an older nvcc"
        )
    code = "import tilewright._cuda as c; print(c.unusable())"
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


def test_a_launch_without_a_gpu_is_an_error_that_names_the_call(module: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    p = module.SoftmaxParams()
    p.row_shape, p.n, p.x, p.y = (1,), 4, 64, 64
    p.x_stride = p.y_stride = 1
    with pytest.raises(RuntimeError, match=r"softmax_forward: cudaError\w+: .*; SoftmaxParams\("):
        module.softmax_forward(p)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="without a driver every function answers its absence")
def test_errors_that_were_answered_are_not_left_behind(module: Any) -> None:
    assert module.unusable() is None
    p = module.SoftmaxParams()
    p.row_dims, p.row_shape, p.n = 1, (2**39,), 1
    with pytest.raises(RuntimeError, match="more blocks than a grid may have"):
        module.softmax_forward(p)
    assert module.last_error() == 0


def reason(monkeypatch: pytest.MonkeyPatch, module: Any, available: bool, version: str | None, why: str) -> str | None:
    """What the backend says with that module (None: it cannot be imported) and that torch."""

    def imported(name: str) -> Any:
        if module is None:
            raise ImportError(f"No module named {name!r}")
        return module

    monkeypatch.setenv(cuda.EMULATE, "0")
    monkeypatch.setattr(cuda, "importlib", SimpleNamespace(import_module=imported))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(build_info, "missing_reason", lambda target: why or None)
    for cached in (cuda.emulated, cuda.unavailable, cuda.kernels):
        cached.cache_clear()
    return cuda.unavailable()


def test_every_reason_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    works, old = SimpleNamespace(unusable=lambda: None), SimpleNamespace(unusable=lambda: "the CUDA driver is old")
    nvcc = "nvcc was not found (looked for nvcc)"
    assert reason(monkeypatch, None, True, "13.0", nvcc) == nvcc
    assert reason(monkeypatch, None, True, "13.0", "") == (
        "this installation has no CUDA C++ kernels: No module named 'tilewright._cuda'"
    )
    no_device = reason(monkeypatch, works, False, "13.0", "")
    assert no_device is not None and no_device.startswith("torch sees no CUDA device; with TILEWRIGHT_CUDA_EMULATE=1")
    no_cuda = reason(monkeypatch, works, False, None, "")
    assert no_cuda is not None and "torch sees no CUDA device (this torch was built without CUDA); with" in no_cuda
    assert reason(monkeypatch, old, True, "13.0", "") == "the CUDA driver is old"
    assert reason(monkeypatch, works, True, "13.0", "") is None
