"""The CUDA attention kernels: forward, backward, decode, caches."""

from __future__ import annotations

import pytest
import torch

import tilewright as tw
from tilewright.backends import cuda
from tilewright.errors import BackendError
from tilewright.verify.case import Case
from tilewright.verify.cases import select_cases
from tilewright.verify.run import run_case

#: Every built-in case in one dtype of three: on a GPU, and by `tilewright verify`, all three run.
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def _cases() -> list[Case]:
    every = [
        c for c in select_cases(["attention", "varlen_attention", "kvcache_attention"]) if c.dtype != torch.float64
    ]
    if torch.cuda.is_available():
        return every
    names = {(c.op, c.name): i for i, c in enumerate(c for c in every if c.dtype == torch.float32)}
    return [c for c in every if c.dtype == DTYPES[names[c.op, c.name] % 3]]


@pytest.mark.parametrize("one", _cases(), ids=lambda c: c.id)
def test_builtin_case(one: Case) -> None:
    (record,) = run_case(one, ["cuda"])
    assert record.status == "passed", record.problems


def _qkv(dtype: torch.dtype = torch.float32, seqlen_q: int = 70) -> list[torch.Tensor]:
    """More than one tile of rows and of keys, two query heads for each key head."""
    sizes = ((1, 2, seqlen_q, 16), (1, 1, 150, 16), (1, 1, 150, 24))
    return [torch.randn(*shape).to(dtype).requires_grad_() for shape in sizes]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the order of threads is drawn from a seed in the emulator only")
@pytest.mark.parametrize("seqlen_q", [70, 3])
def test_results_do_not_depend_on_the_order_of_threads(seqlen_q: int) -> None:
    inputs = _qkv(torch.float16, seqlen_q)
    mask = torch.randn(1, 1, seqlen_q, 150, requires_grad=True)
    sinks = torch.randn(2, requires_grad=True)
    found = []
    for seed in range(20):
        cuda.kernels().set_seed(seed)
        out = tw.attention(*inputs, mask=mask, sinks=sinks, backend="cuda")
        found.append((out, *torch.autograd.grad(out.square().sum(), [*inputs, mask, sinks])))
    cuda.kernels().set_seed(0)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("splits", [0, 1, 2, 3, 1000])
def test_a_number_of_splits_does_not_depend_on_the_batch(splits: int) -> None:
    q, k, v = torch.randn(3, 4, 1, 16), torch.randn(3, 2, 300, 16), torch.randn(3, 2, 300, 16)
    lengths = torch.tensor([300, 17, 129], dtype=torch.int32)
    options = {"num_splits": splits, "backend": "cuda"}
    whole = tw.kvcache_attention(q, k, v, cache_seqlens=lengths, **options)
    for b in range(3):
        one = slice(b, b + 1)
        alone = tw.kvcache_attention(q[one], k[one], v[one], cache_seqlens=lengths[one], **options)
        assert torch.equal(whole[one], alone) or splits == 0
    expected = tw.kvcache_attention(q, k, v, cache_seqlens=lengths, backend="reference")
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


def test_training_on_few_queries_goes_through_decode_and_back() -> None:
    inputs = _qkv(seqlen_q=5)
    found, expected = (
        torch.autograd.grad(tw.attention(*inputs, causal="bottom_right", backend=b).square().sum(), inputs)
        for b in ("cuda", "reference")
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_float64_is_refused() -> None:
    q = torch.randn(1, 1, 2, 8, dtype=torch.float64)
    with pytest.raises(BackendError, match="float64"):
        tw.attention(q, q, q, backend="cuda")
