"""The CPU kernels compile with compilers that lack newer builtins: GCC 11 and older have no __builtin_shufflevector."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CPU = Path(__file__).parents[2] / "csrc" / "cpu"
KERNELS = sorted(file for file in CPU.glob("*.cpp") if "TW_ISA" in file.read_text())
ONE_PLACE = "say it with shuffle() of csrc/cpu/simd.h, which has a form for every compiler"


def test_one_place_names_the_builtins_that_only_some_compilers_have() -> None:
    named = {f.name for f in CPU.iterdir() if re.search(r"__builtin_shuffle", f.read_text())}
    assert named == {"simd.h"}, f"{named - {'simd.h'}} name a builtin of some compilers: {ONE_PLACE}"


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda file: file.stem)
def test_kernels_compile_as_gcc_11_sees_them(kernel: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "").split(" ")[0] or "c++")
    if compiler is None:
        pytest.skip("no C++ compiler was found")
    macros = [compiler, "-dM", "-E", "-x", "c++", os.devnull]
    if "__clang__" in subprocess.run(macros, capture_output=True, text=True, check=True).stdout:
        pytest.skip(f"{compiler} is Clang, which has no other builtin than the one that GCC 11 lacks")
    older = ["-U__GNUC__", "-D__GNUC__=11", "-D__builtin_shufflevector=missing_before_gcc_12"]
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wno-psabi", *older, str(kernel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{kernel.name} does not compile with GCC 11: {ONE_PLACE}\n{done.stderr[-2000:]}"
