"""Every test starts from the same random state and without a backend chosen by the environment."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from typing import Any

import pytest
import torch

# Inductor's cache of compiled graphs does not see that an op's outputs have changed.
_inductor = tempfile.TemporaryDirectory(prefix="tilewright-inductor-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _inductor.name


def _patch_triton_once() -> None:
    """Triton's interpreter patches triton.language for a launch, and again, to no effect, for each call of a function
    in it: a quarter of its time."""
    from triton.runtime import interpreter

    patch, language = interpreter._patch_lang, interpreter.tl

    def once(fn: Any) -> Any:
        used = [m for m in fn.__globals__.values() if m is language or m is language.core]
        done = not any(language.core.is_builtin(m.load) for m in used)
        return interpreter._LangPatchScope() if done else patch(fn)

    interpreter._patch_lang = once


# Without a GPU Triton kernels run in Triton's interpreter. That is decided when they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is not None:
        _patch_triton_once()

# Launch configurations that somebody has tuned on this machine are no part of what is tested.
os.environ["TILEWRIGHT_TUNED"] = "off"

#: A file's tests run in one process, one after another: these take minutes, and begin before all others.
LONGEST = ("test_front_end.py", "test_gpu_rehearsal.py", "test_triton_any_tensor.py", "test_packaging.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _fixed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.config._from_environment", "")
    torch.manual_seed(0)
