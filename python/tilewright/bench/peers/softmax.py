"""Softmax of torch, plain and compiled, Liger, QuACK and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..shapes import Softmax
from . import Peer

Forward = Callable[[Tensor], Tensor]


def plain(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def _compiled(shape: Softmax, device: str) -> Forward:
    made: Forward = torch.compile(plain, dynamic=False)
    return made


def _liger(shape: Softmax, device: str) -> Forward:
    from liger_kernel.ops.softmax import LigerSoftmaxFunction

    apply: Forward = LigerSoftmaxFunction.apply
    return apply


def _quack(shape: Softmax, device: str) -> Forward:
    from quack.softmax import softmax

    function: Forward = softmax
    return function


def _onnxruntime(shape: Softmax, device: str) -> Any:
    from .onnx import softmax_session

    return softmax_session(shape, device)


PEERS = (
    Peer("eager", ("torch",), lambda shape, device: plain),
    Peer("compile", ("torch",), _compiled),
    Peer("liger", ("liger-kernel",), _liger, ("cuda",)),
    Peer("quack", ("quack-kernels",), _quack, ("cuda",)),
    Peer("onnxruntime", ("onnxruntime",), _onnxruntime, ("cpu",), backward=False),
)
