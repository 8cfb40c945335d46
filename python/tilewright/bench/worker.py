"""The child's side of a worker: items of a benchmark, one request at a time. ``python -m tilewright.bench.worker``"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Send = Callable[[dict[str, Any]], None]
Handler = Callable[[dict[str, Any], Send], dict[str, Any]]


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests until standard input ends. What libraries print goes to the log, which is standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = handlers[request["do"]](request, send)
        except Exception as error:  # whatever went wrong is the answer; the log has the rest
            traceback.print_exc()
            from .measure import in_words

            result = {"raised": in_words(error)}
        broken = _device_broken()
        send({**result, "done": True, "exiting": broken is not None, **({"device": broken} if broken else {})})
        if broken:
            return


def _device_broken() -> str | None:
    """After an illegal access every further call on the device fails: the process is then of no more use."""
    import torch

    from .measure import in_words

    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return in_words(error)
    return None


def _environment(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from .environment import environment
    from .peers import all_peers

    versions = {p.name: p.version() for peers in all_peers().values() for p in peers}
    return {"environment": {**environment(), "peers": versions}}


def _items(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from .items import OPS, all_items

    found = all_items(request["shapes"], tuple(request.get("ops", OPS)), tuple(request.get("calls", ())))
    return {"items": [{"name": i.name, "unit": i.unit, **i.facts} for i in found]}


def _item(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from .measure import Bench, run_item

    bench = Bench(**request["bench"])
    return {"rows": run_item(find_item(request["item"], bench), bench, request["without"], send)}


def find_item(name: str, bench: Any) -> Any:
    from .items import all_items

    return next(i for i in all_items(bench.shapes, calls=tuple(bench.calls)) if i.name == name)


HANDLERS: dict[str, Handler] = {"environment": _environment, "items": _items, "item": _item}


if __name__ == "__main__":
    serve(HANDLERS)
