"""Other implementations of our ops, by the names they go by in reports. Each is imported when it is asked for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """A peer does not serve a call; the message says why."""


@dataclass(frozen=True)
class Peer:
    """make: takes a shape of the op's (in bench/shapes.py) and the device, and answers a function of the call's
    tensors; it raises Refused, ImportError or whatever else keeps the peer from serving the call.

    distributions: whose version is shown, the first that is installed. devices: where it exists at all.
    backward: whether gradients flow through it.
    """

    name: str
    distributions: tuple[str, ...]
    make: Callable[[Any, str], Callable[..., Any]]
    devices: tuple[str, ...] = ("cuda", "cpu")
    backward: bool = True

    def version(self) -> str | None:
        for name in self.distributions:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None


def all_peers() -> dict[str, tuple[Peer, ...]]:
    """By op."""
    from . import attention, decode, ffn, gpt2, softmax, varlen

    return {
        "attention": attention.PEERS,
        "varlen_attention": varlen.PEERS,
        "kvcache_attention": decode.PEERS,
        "softmax": softmax.PEERS,
        "ffn": ffn.PEERS,
        "end_to_end": gpt2.PEERS,
    }
