"""Whole programs that torch compiles and exports: dynamic shapes, one node for each op, reruns at other lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tilewright as tw


class Block(nn.Module):
    """Attention and a feed-forward layer, by the ops themselves."""

    def __init__(self, width: int = 8, heads: int = 2, dropout_p: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout_p = heads, dropout_p
        self.qkv = nn.Linear(width, 3 * width)
        self.w_in, self.w_out = nn.Parameter(torch.randn(4 * width, width)), nn.Parameter(torch.randn(width, 4 * width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        drop = self.dropout_p if self.training else 0.0
        attended = tw.attention(q, k, v, causal="top_left", layout="bshd", dropout_p=drop)
        assert isinstance(attended, Tensor)
        return tw.ffn(tw.softmax(attended.flatten(2)), self.w_in, self.w_out, residual=x, dropout_p=drop)


LENGTH, BATCH = torch.export.Dim("length", min=2, max=64), torch.export.Dim("batch", min=1, max=16)


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_one_node_for_each_op_and_runs_at_other_lengths(strict: bool, tmp_path: Any) -> None:
    module = Block()
    program = torch.export.export(
        module, (torch.randn(2, 5, 8),), dynamic_shapes=({0: BATCH, 1: LENGTH},), strict=strict
    )
    names = [str(node.target) for node in program.graph.nodes if "tilewright" in str(node.target)]
    assert names == ["tilewright.attention.default", "tilewright.softmax.default", "tilewright.ffn.default"]
    torch.export.save(program, tmp_path / "block.pt2")
    loaded = torch.export.load(tmp_path / "block.pt2").module()
    for batch, length in ((1, 9), (3, 2)):
        x = torch.randn(batch, length, 8)
        torch.testing.assert_close(loaded(x), module(x))


def test_decomposing_an_exported_program_leaves_the_ops() -> None:
    program = torch.export.export(Block(), (torch.randn(2, 5, 8),)).run_decompositions()
    assert sum("tilewright" in str(node.target) for node in program.graph.nodes) == 3


EXPORTED: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Tensor, ...]]]] = {
    "varlen_attention": (
        lambda q, cu: tw.varlen_attention(q, q, q, cu, cu.clone(), 64, 64, causal="bottom_right"),
        lambda n: (torch.randn(n, 2, 8), torch.tensor([0, n // 2, n], dtype=torch.int32)),
    ),
    "kvcache_attention": (
        lambda q, cache, lengths: tw.kvcache_attention(q, cache, cache, cache_seqlens=lengths),
        lambda n: (torch.randn(1, 4, 1, 8), torch.randn(1, 2, n, 8), torch.tensor([n - 1], dtype=torch.int32)),
    ),
    "log_softmax": (lambda x, mask: tw.log_softmax(x, mask=mask), lambda n: (torch.randn(3, n), torch.ones(n) > 0)),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_other_ops_export_with_a_dynamic_length(name: str) -> None:
    function, make = EXPORTED[name]

    class Call(nn.Module):
        def forward(self, *args: Tensor) -> Any:
            return function(*args)

    example = make(6)
    dims = tuple({d: LENGTH for d, n in enumerate(t.shape) if n == 6} for t in example)
    program = torch.export.export(Call(), example, dynamic_shapes=(dims,))
    assert sum(f"tilewright.{name}" in str(node.target) for node in program.graph.nodes) == 1
    other = make(10)
    torch.testing.assert_close(program.module()(*other), function(*other))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_step_agrees_at_every_length(mode: str) -> None:
    torch._dynamo.reset()
    module = Block()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, mode=mode)
    for length in (5, 7):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x), module(x))
        found = torch.autograd.grad(compiled(x).sin().sum(), list(module.parameters()))
        expected = torch.autograd.grad(module(x).sin().sum(), list(module.parameters()))
        torch.testing.assert_close(found, expected)


def test_compiled_under_autocast() -> None:
    torch._dynamo.reset()
    q = torch.randn(1, 2, 4, 8)

    def run(t: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return tw.attention(t, t, t), tw.scaled_dot_product_attention(t, t, t, torch.zeros(4, 4)), tw.softmax(t)

    found = torch.compile(run, fullgraph=True, backend="aot_eager")(q)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    torch.testing.assert_close(found, run(q))


def test_vmap_inside_compiled_code() -> None:
    torch._dynamo.reset()
    q = torch.randn(3, 1, 2, 4, 8)
    run = torch.vmap(lambda t: tw.attention(t, t, t, causal="top_left"))
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(q), run(q))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: CUDA graphs are recorded on one")
def test_cuda_graph_replays_with_new_inputs() -> None:
    module = Block().cuda().eval()
    static = torch.randn(2, 5, 8, device="cuda")
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            module(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(static)
        for _ in range(2):
            static.normal_()
            graph.replay()
            torch.testing.assert_close(out, module(static))
