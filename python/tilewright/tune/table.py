"""What is written: entries with where they come from."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Iterable
from typing import Any

import torch

from ..bench.environment import gpu_driver
from ..triton_kernels import launch
from .search import Result


def section(results: Iterable[Result], device: torch.device) -> dict[str, Any]:
    """The user table's section for this device: the tuned results, and on what they were measured."""
    import triton

    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "gpu": launch.device_name(device),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "driver": gpu_driver(),
        "tilewright": importlib.metadata.version("tilewright"),
        "date": date,
        "entries": [_entry(r, date) for r in results if r.status == "tuned"],
    }


def _entry(result: Result, date: str) -> dict[str, Any]:
    assert result.before_seconds is not None
    assert result.after_seconds is not None
    return {
        "kernel": result.kernel,
        "key": result.key,
        **result.after._asdict(),
        "milliseconds": 1e3 * result.after_seconds,
        "before": {**result.before._asdict(), "milliseconds": 1e3 * result.before_seconds},
        "date": date,
    }


def to_json(result: Result) -> dict[str, Any]:
    """A result with everything that was tried."""
    return {
        "kernel": result.kernel,
        "key": result.key,
        "status": result.status,
        "reason": result.reason,
        "before": result.before._asdict(),
        "after": result.after._asdict(),
        "before_seconds": result.before_seconds,
        "after_seconds": result.after_seconds,
        "trials": [
            {
                **t.config._asdict(),
                "outcome": t.outcome,
                "reason": t.reason,
                "seconds": t.seconds,
                "current_seconds": t.current_seconds,
            }
            for t in result.trials
        ],
    }
