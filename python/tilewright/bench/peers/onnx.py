"""Single-op models for ONNX Runtime on the CPU, made with onnx.helper. Tensors go in and out as numpy views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..shapes import Attention, Ffn, Softmax
from . import Refused

#: Of ONNX's standard operators; Gelu came with 20. And of Microsoft's own, MultiHeadAttention among them.
OPSET, MICROSOFT = 20, 1


def _session(inputs: dict[str, list[int]], nodes: list[Any], output: list[int]) -> Callable[..., Tensor]:
    """A function of tensors in the order of ``inputs``."""
    import onnxruntime
    from onnx import TensorProto, helper

    def value(name: str, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(nodes, "call", [value(n, s) for n, s in inputs.items()], [value("out", output)])
    versions = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", MICROSOFT)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would spin for a while after each call, on the processors of whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> Tensor:
        feed = {n: t.numpy() for n, t in zip(inputs, tensors, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def attention_session(shape: Attention) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """MultiHeadAttention takes q as (B, S, H D) and k, v as (B, H, S, D): only q's and the output's heads are moved."""
    from onnx import helper

    width = shape.heads * shape.head_dim
    rows = [shape.batch, shape.seqlen, width]
    heads = [shape.batch, shape.heads, shape.seqlen, shape.head_dim]
    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["out"],
        domain="com.microsoft",
        num_heads=shape.heads,
        unidirectional=int(shape.causal),
    )
    run = _session({"q": rows, "k": heads, "v": heads}, [node], rows)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = run(q.transpose(1, 2).reshape(rows), k, v)
        return out.view(shape.batch, shape.seqlen, shape.heads, shape.head_dim).transpose(1, 2)

    return attention


def softmax_session(shape: Softmax, device: str) -> Callable[[Tensor], Tensor]:
    from onnx import helper

    if shape.dtype != "float32":
        raise Refused("measured in float32")
    sizes = [shape.rows, shape.width]
    return _session({"x": sizes}, [helper.make_node("Softmax", ["x"], ["out"], axis=-1)], sizes)


def ffn_session(shape: Ffn, device: str) -> Callable[..., Tensor]:
    from onnx import helper

    if shape.dtype != "float32":
        raise Refused("measured in float32")
    inner = 2 * shape.hidden if shape.gated else shape.hidden
    inputs = {
        "x": [shape.rows, shape.features],
        "w_in": [inner, shape.features],
        "w_out": [shape.features, shape.hidden],
    }
    biases = {"b_in": [inner], "b_out": [shape.features]} if shape.bias else {}

    def linear(x: str, w: str, b: str, out: str) -> Any:
        return helper.make_node("Gemm", [x, w, *([b] if shape.bias else [])], [out], transB=1)

    nodes = [linear("x", "w_in", "b_in", "pre")]
    if shape.activation == "swiglu":
        nodes += [
            helper.make_node("Split", ["pre"], ["gate", "up"], axis=-1, num_outputs=2),
            helper.make_node("QuickGelu", ["gate"], ["act"], domain="com.microsoft", alpha=1.0),  # x sigmoid(x)
            helper.make_node("Mul", ["act", "up"], ["hidden"]),
        ]
    elif shape.activation == "gelu_tanh":
        nodes.append(helper.make_node("Gelu", ["pre"], ["hidden"], approximate="tanh"))
    else:
        raise Refused(f"measured with gelu_tanh and swiglu, not {shape.activation}")
    nodes.append(linear("hidden", "w_out", "b_out", "out"))
    return _session({**inputs, **biases}, nodes, [shape.rows, shape.features])
