"""The child's side of measuring in rounds.

It imports nothing of the package before it is asked: an old commit may lack an op, and that then is an answer.
"""

from __future__ import annotations

from typing import Any

from . import worker


def _round(request: dict[str, Any], send: worker.Send) -> dict[str, Any]:
    import torch

    from .measure import Bench
    from .timing import interleave

    bench = Bench(**request["bench"])
    item = worker.find_item(request["item"], bench)
    torch.manual_seed(0)
    built = item.build(bench)
    ready = {}
    for provider in request["providers"]:
        send({"doing": "making", "provider": provider})
        ready[provider] = built.providers[provider]()
    timer = bench.wall_timer() if item.by == "wall" else bench.timer(item.cold)
    found = interleave(ready, bench.seconds, 1, timer, lambda p: send({"doing": "timing", "provider": p}))
    return {"seconds": {p: t.p50 for p, t in found.items()}}


HANDLERS: dict[str, worker.Handler] = {**worker.HANDLERS, "round": _round}


def serve() -> None:
    worker.serve(HANDLERS)
