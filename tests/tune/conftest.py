"""A table of the user's own, and tensors where Triton kernels run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tilewright.registry import unavailable

if unavailable("triton") is not None:
    collect_ignore_glob = ["test_*.py"]

Install = Callable[..., Path]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Iterator[Install]:
    """Puts a table into force: entries for this device, or the whole content of the file."""
    import triton

    from tilewright.triton_kernels import launch

    def install(*entries: dict[str, Any], content: Any = None, **section: Any) -> Path:
        path = tmp_path / "tuned.json"
        here = {"gpu": launch.device_name(device), "triton": triton.__version__}
        content = (
            {"format": 1, "devices": [{**here, "entries": list(entries), **section}]} if content is None else content
        )
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("TILEWRIGHT_TUNED", str(path))
        launch.forget_configurations()
        return path

    launch.forget_configurations()
    yield install
    monkeypatch.undo()
    launch.forget_configurations()
