"""In a worker: one candidate beside the configuration in force, as `tilewright tune` tries it."""

from __future__ import annotations

from typing import Any

import torch

from tilewright.bench.device import DeviceTimer
from tilewright.bench.timing import WallTimer
from tilewright.triton_kernels.launch import Config
from tilewright.tune.search import Search, tune
from tilewright.tune.workloads import Maker

from .device import Gpu, device


def trial(request: dict[str, Any]) -> dict[str, Any]:
    """ "outcome" ("faster", "not faster", "refused", "different", "failed"), "reason", and the seconds of both."""
    at = device()
    candidate = Config(request["blocks"], request["warps"], request["stages"])
    search = Search(
        Maker(torch.device(at.name), request["tiny"]),
        DeviceTimer() if isinstance(at, Gpu) else WallTimer(),
        0.0 if request["tiny"] else request["seconds"],
        neighbours=lambda kernel, config: iter((candidate,)),
        rounds=1,
    )
    result = tune(request["kernel"], request["key"], search)
    if not result.trials:
        return {"outcome": "failed", "reason": f"{result.status}: {result.reason}"}
    (tried,) = result.trials
    return {
        "outcome": tried.outcome,
        "reason": tried.reason,
        "seconds": tried.seconds,
        "current_seconds": tried.current_seconds,
        "in_force": result.before._asdict(),
    }
