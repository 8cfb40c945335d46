"""Builds the emulator's own test module, once for all tests here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def emulator() -> Any:
    folder = ROOT / "build" / f"emulation-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    tools = Path(sysconfig.get_path("scripts"))
    environment = {"PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin"}
    for command in (
        ["cmake", "-S", ROOT / "csrc", "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", folder, "--target", "_emulation_test"],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    built = folder / f"_emulation_test{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("_emulation_test", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
