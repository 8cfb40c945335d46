"""The feed-forward block of torch (plain, compiled, with cuBLASLt's fused epilogue), Liger and ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import Ffn
from . import Peer, Refused

Forward = Callable[..., Tensor]


def chain(activation: str, x: Tensor, w_in: Tensor, w_out: Tensor, b_in: Any = None, b_out: Any = None) -> Tensor:
    """What a torch user writes."""
    inner = F.linear(x, w_in, b_in)
    if activation == "swiglu":
        gate, up = inner.chunk(2, -1)
        return F.linear(F.silu(gate) * up, w_out, b_out)
    return F.linear(F.gelu(inner, approximate="tanh"), w_out, b_out)


def _eager(shape: Ffn, device: str) -> Forward:
    return functools.partial(chain, shape.activation)


def _compiled(shape: Ffn, device: str) -> Forward:
    made: Forward = torch.compile(_eager(shape, device), dynamic=False)
    return made


def _cublaslt(shape: Ffn, device: str) -> Forward:
    """torch._addmm_activation: bias and GELU in the product's epilogue; torch has it for this activation alone."""
    if shape.activation != "gelu_tanh" or not shape.bias:
        raise Refused("torch reaches cuBLASLt's epilogue with a bias and gelu_tanh only")

    def block(x: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor, b_out: Tensor) -> Tensor:
        hidden = torch._addmm_activation(b_in, x, w_in.t(), use_gelu=True)
        return torch.addmm(b_out, hidden, w_out.t())

    return block


def _liger(shape: Ffn, device: str) -> Forward:
    """Its fused silu(gate) * up between torch's products, as in LigerSwiGLUMLP."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    if shape.activation != "swiglu" or shape.bias:
        raise Refused("Liger's block is SwiGLU without biases")

    def block(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        gate, up = w_in.chunk(2, 0)
        hidden: Tensor = LigerSiLUMulFunction.apply(F.linear(x, gate), F.linear(x, up))
        return F.linear(hidden, w_out)

    return block


def _onnxruntime(shape: Ffn, device: str) -> Forward:
    from .onnx import ffn_session

    return ffn_session(shape, device)


PEERS = (
    Peer("eager", ("torch",), _eager),
    Peer("compile", ("torch",), _compiled),
    Peer("cublaslt", ("torch",), _cublaslt, ("cuda",), backward=False),
    Peer("liger", ("liger-kernel",), _liger, ("cuda",)),
    Peer("onnxruntime", ("onnxruntime",), _onnxruntime, ("cpu",), backward=False),
)
