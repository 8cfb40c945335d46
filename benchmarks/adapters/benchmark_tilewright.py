"""tilewright's ops for ``kernels benchmark`` of Hugging Face's kernels (github.com/huggingface/kernels).

It belongs into the folder benchmarks/ of a kernel repository whose package has tilewright's ``attention``, ``softmax``
and ``ffn``. Where tilewright is installed, this is one:

    mkdir -p repo/benchmarks repo/build/torch-cpu        # torch-cuda on a GPU
    cp benchmarks/adapters/benchmark_tilewright.py repo/benchmarks/
    echo "from tilewright import attention, ffn, softmax" > repo/build/torch-cpu/__init__.py
    echo '{"name": "tilewright", "id": "tilewright_local", "version": 1, "license": "Apache-2.0", "python-depends": [],
        "backend": {"type": "cpu"}}' > repo/build/torch-cpu/metadata.json
    pip install 'kernels[benchmark]'
    kernels benchmark ./repo

A workload's reference is PyTorch's own op, which that command compares with (to 0.01) and times once. Numbers are
float32 on a CPU and float16 elsewhere, whose rounding stays below that bound. The file needs torch and kernels alone.

Verified on a CPU with kernels 0.17.2 and torch 2.13, as above: all workloads run and match, and a softmax that answers
zeros is refused. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from kernels.benchmark import Benchmark
from torch import Tensor

#: (batch, heads, heads of k and v, sequence length, head size, causal)
ATTENTION = {
    "gpt2": (1, 12, 12, 512, 64, True),
    "llama3_8b": (1, 32, 8, 512, 128, True),
    "bert": (8, 12, 12, 128, 64, False),
}
#: (rows, width)
SOFTMAX = {"attention": (2048, 1024), "logits": (64, 50257)}
#: (rows, features, hidden, activation)
FFN = {"gpt2": (128, 768, 3072, "gelu_tanh"), "llama3_8b_one_row": (1, 4096, 14336, "swiglu")}


def normal(self: Benchmark, *shape: int, scale: float = 1.0) -> Tensor:
    dtype = torch.float32 if self.device == "cpu" else torch.float16
    return torch.randn(shape, device=self.device, dtype=dtype) * scale


def workloads(sizes: Mapping[str, tuple[Any, ...]]) -> Callable[[type[Benchmark]], type[Benchmark]]:
    """Give a class the methods setup_*, benchmark_* and verify_* of each name, from its make, run and reference.

    make(*sizes) answers the call's tensors and options, run and reference take them.
    """

    def add(cls: Any) -> type[Benchmark]:
        for name, of in sizes.items():

            def setup(self: Any, of: tuple[Any, ...] = of) -> None:
                self.tensors, self.options = self.make(*of)

            def benchmark(self: Any) -> None:
                self.out = self.run(*self.tensors, **self.options)

            def verify(self: Any) -> Tensor:
                return self.reference(*self.tensors, **self.options)

            for kind, method in (("setup", setup), ("benchmark", benchmark), ("verify", verify)):
                setattr(cls, f"{kind}_{name}", method)
        return cls

    return add


@workloads(ATTENTION)
class TilewrightAttention(Benchmark):
    seed = 0

    def make(
        self, batch: int, heads: int, heads_kv: int, seqlen: int, head_dim: int, causal: bool
    ) -> tuple[list[Tensor], dict[str, Any]]:
        return [normal(self, batch, h, seqlen, head_dim) for h in (heads, heads_kv, heads_kv)], {"causal": causal}

    def run(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        return self.kernel.attention(q, k, v, causal="top_left" if causal else None)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)


@workloads(SOFTMAX)
class TilewrightSoftmax(Benchmark):
    seed = 0

    def make(self, rows: int, width: int) -> tuple[list[Tensor], dict[str, Any]]:
        # Rows with a few large weights: among many small ones the bound of 0.01 would see no fault.
        return [normal(self, rows, width, scale=8.0)], {}

    def run(self, x: Tensor) -> Tensor:
        return self.kernel.softmax(x)

    def reference(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1)


@workloads(FFN)
class TilewrightFfn(Benchmark):
    seed = 0

    def make(self, rows: int, features: int, hidden: int, activation: str) -> tuple[list[Tensor], dict[str, Any]]:
        inner = 2 * hidden if activation == "swiglu" else hidden
        w_in = normal(self, inner, features, scale=features**-0.5)
        w_out = normal(self, features, hidden, scale=hidden**-0.5)
        return [normal(self, rows, features), w_in, w_out], {"activation": activation}

    def run(self, x: Tensor, w_in: Tensor, w_out: Tensor, activation: str) -> Tensor:
        return self.kernel.ffn(x, w_in, w_out, activation=activation)

    def reference(self, x: Tensor, w_in: Tensor, w_out: Tensor, activation: str) -> Tensor:
        inner = F.linear(x, w_in)
        if activation == "swiglu":
            gate, up = inner.chunk(2, -1)
            return F.linear(F.silu(gate) * up, w_out)
        return F.linear(F.gelu(inner, approximate="tanh"), w_out)
