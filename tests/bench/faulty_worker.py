"""A worker whose softmax has peers that fail in every way, for tests of what that costs."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

from tilewright.bench.items import softmax
from tilewright.bench.peers import Peer
from tilewright.bench.worker import HANDLERS, serve


def crashes(x: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGSEGV)
    return x


def hangs(x: torch.Tensor) -> torch.Tensor:
    time.sleep(3600)
    return x


def out_of_memory(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(2**60, dtype=torch.uint8)


def nan(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1) * float("nan")


def raises(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel image is available")


def absent(shape: Any, device: str) -> Any:
    import a_package_that_nobody_has

    return a_package_that_nobody_has


FAULTS = (crashes, hangs, out_of_memory, nan, raises)

if __name__ == "__main__":
    faults = tuple(Peer(f.__name__, (), lambda shape, device, f=f: f) for f in FAULTS)  # type: ignore[misc]
    softmax.PEERS = (*faults, Peer("absent", (), absent), *softmax.PEERS)
    serve(HANDLERS)
