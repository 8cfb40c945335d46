"""Training as torch does it: checkpointing, replicated and sharded modules, copies, seeds and determinism."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import tilewright as tw


class Block(nn.Module):
    def __init__(self, dropout_p: float = 0.0) -> None:
        super().__init__()
        self.dropout_p = dropout_p
        self.qkv = nn.Linear(8, 24)
        self.w_in, self.w_out = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)) for t in self.qkv(x).chunk(3, -1))
        attended = tw.attention(q, k, v, layout="bshd", causal="top_left", dropout_p=self.dropout_p)
        assert isinstance(attended, Tensor)
        return tw.ffn(attended.flatten(2), self.w_in, self.w_out, residual=x, dropout_p=self.dropout_p)


def gradients(run: Callable[[Tensor], Tensor], module: nn.Module, seed: int = 5) -> list[Tensor]:
    """Output and gradients of one step, from the same input and the same state of the generator."""
    torch.manual_seed(seed)
    x = torch.randn(2, 6, 8, dtype=next(module.parameters()).dtype, requires_grad=True)
    out = run(x)
    found = torch.autograd.grad(out.sin().sum(), [x, *module.parameters()], allow_unused=True)
    return [out, *(g for g in found if g is not None)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=0)


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_checkpoints_recompute_the_same_dropout_mask(dropout_p: float) -> None:
    module = Block(dropout_p).double()
    expected = gradients(module, module)
    assert_equal(gradients(lambda x: checkpoint(module, x, use_reentrant=False), module), expected)
    torch.manual_seed(5)
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    out = checkpoint(module, x, use_reentrant=True)
    out.sin().sum().backward()
    # The gradients of x, along the residual and through attention, are added in another order.
    torch.testing.assert_close([out, x.grad, *(p.grad for p in module.parameters())], expected)


def test_selective_checkpoint_keeps_what_it_is_told_to() -> None:
    module, ran = Block(0.5), []

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        ran.append((str(operator), context.is_recompute))
        return CheckpointPolicy.MUST_SAVE if "tilewright" in str(operator) else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    run = functools.partial(checkpoint, module, use_reentrant=False, context_fn=contexts)
    assert_equal(gradients(run, module), gradients(module, module))
    assert ("tilewright.attention.default", False) in ran and ("tilewright.ffn.default", False) in ran


def test_seeds_reproduce_dropout_and_seeds_differ() -> None:
    module = Block(0.5)
    first, again, other = (gradients(module, module, seed) for seed in (5, 5, 6))
    assert_equal(again, first)
    assert not torch.equal(other[0], first[0])


def test_deterministic_algorithms_give_equal_reruns() -> None:
    module = Block()
    mask = torch.randn(1, 1, 6, 6, requires_grad=True)
    x = torch.randn(4, 2, 6, 4, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(module, module) for _ in range(5)]
        masks = [torch.autograd.grad(tw.scaled_dot_product_attention(x, x, x, mask).sum(), mask) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert_equal(run, runs[0])
    for found in masks[1:]:
        assert_equal(list(found), list(masks[0]))


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: _saved(module),
}


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("how", COPIES)
def test_copied_modules_compute_the_same(how: str) -> None:
    module = Block(0.5)
    duplicate = COPIES[how](module)
    assert_equal(gradients(duplicate, duplicate), gradients(module, module))


def test_outputs_with_a_graph_do_not_pickle_but_detached_ones_do() -> None:
    out = Block()(torch.randn(1, 3, 8))
    assert torch.equal(pickle.loads(pickle.dumps(out.detach())), out)


def test_functional_call_and_per_sample_gradients() -> None:
    module = Block()
    parameters = dict(module.named_parameters())
    x = torch.randn(3, 6, 8)

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, values, (sample[None],))
        return out.sin().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, parameter in parameters.items():
        singles = [torch.autograd.grad(module(sample[None]).sin().sum(), parameter)[0] for sample in x]
        torch.testing.assert_close(found[name], torch.stack(singles))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("static_graph", [False, True])
def test_distributed_data_parallel(static_graph: bool) -> None:
    module = Block()
    expected = gradients(module, module)
    replica = nn.parallel.DistributedDataParallel(copy.deepcopy(module), static_graph=static_graph)
    torch.manual_seed(5)
    x = torch.randn(2, 6, 8, requires_grad=True)
    out = replica(x)
    out.sin().sum().backward()
    assert_equal([out, x.grad, *(p.grad for p in replica.parameters())], expected)


@pytest.mark.usefixtures("process_group")
def test_fully_sharded_modules() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = Block()
    expected = gradients(module, module)
    sharded = fully_shard(copy.deepcopy(module), mesh=init_device_mesh("cpu", (1,)))
    torch.manual_seed(5)
    x = torch.randn(2, 6, 8, requires_grad=True)
    out = sharded(x)
    out.sin().sum().backward()
    assert_equal([out, x.grad, *(p.grad.full_tensor() for p in sharded.parameters())], expected)
