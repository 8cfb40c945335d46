"""Calls worth measuring, each with PyTorch's own way of doing the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..catalog import OPS, canonical_call
from ..ops._op import Cost
from ..verify.case import DTYPE_NAMES, Case, Maker
from ..verify.cases import attention, ffn, softmax
from ..verify.run import run_case

MODES = ("forward", "forward+backward")

TorchFunction = Callable[[dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Workload:
    """case: the call, which verification runs too; theirs: torch's result on the same arguments; label: for people."""

    case: Case
    theirs: TorchFunction
    label: str

    @property
    def dtype(self) -> str:
        return DTYPE_NAMES[self.case.dtype]


def torch_attention(arguments: dict[str, Any]) -> Tensor:
    q, k, v = arguments["q"], arguments["k"], arguments["v"]
    return F.scaled_dot_product_attention(q, k, v, is_causal=arguments.get("causal") is not None)


def torch_softmax(arguments: dict[str, Any]) -> Tensor:
    return torch.softmax(arguments["x"], -1)


def torch_ffn(arguments: dict[str, Any]) -> Tensor:
    inner = F.gelu(F.linear(arguments["x"], arguments["w_in"], arguments["b_in"]), approximate="tanh")
    return F.linear(inner, arguments["w_out"], arguments["b_out"])


def workloads(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> Iterator[Workload]:
    """GPT-2's sizes: 12 heads of 64, width 768. q, k and v are views of one projection's output, as in the model."""
    for dtype in dtypes:
        for causal in (None, "top_left"):
            spec: dict[str, Any] = {"batch": 1, "heads": 12, "seqlen_q": 512, "head_dim": 64, "memory": "fused"}
            if causal:
                spec["causal"] = causal
            name = "attention, causal" if causal else "attention"
            yield Workload(attention.case("gpt2", dtype, **spec), torch_attention, f"{name}  12 × 512 × 64")
        rows = softmax.case("softmax", "wide", dtype, shape=(2048, 1024))
        yield Workload(rows, torch_softmax, "softmax  2048 × 1024")
        block = ffn.case("gpt2", dtype, rows=128, features=768, hidden=3072, biases=True)
        yield Workload(block, torch_ffn, "ffn  128 rows, 768 → 3072")


def check(workload: Workload, backend: str) -> str | None:
    """What verification says against measuring this: a wrong result has no speed. None when it passes."""
    record = run_case(workload.case, [backend])[0]
    return None if record.status == "passed" else f"{record.status}: {'; '.join(record.problems)}"


def functions(workload: Workload, backend: str, mode: str) -> dict[str, Callable[[], object]]:
    """ "tilewright" and "torch" on the same tensors: the forward without recording, or forward and backward."""
    case = workload.case
    maker = Maker(0, case.dtype)
    arguments = case.make(maker)
    op = OPS[case.op][1]
    if mode == "forward":
        arguments = {n: v.detach() if isinstance(v, Tensor) else v for n, v in arguments.items()}
        return {
            "tilewright": lambda: op(**arguments, backend=backend),
            "torch": lambda: workload.theirs(arguments),
        }
    leaves = {n: v.detach().requires_grad_() if n in case.gradients else v for n, v in arguments.items()}
    wanted = [leaves[n] for n in case.gradients]
    upstream = maker.draw_normal(*workload.theirs(leaves).shape)

    def train(forward: Callable[[], Any]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), wanted, upstream)

    return {
        "tilewright": train(lambda: op(**leaves, backend=backend)),
        "torch": train(lambda: workload.theirs(leaves)),
    }


def cost(workload: Workload) -> Cost:
    """Least work of the forward."""
    call, _ = canonical_call(workload.case.op, **workload.case.make(Maker(0, workload.case.dtype)))
    return OPS[workload.case.op][0].cost(call)
