"""What only the CPU backend promises: gradients by finite differences, instruction sets, threads, sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

import tilewright as tw
from tilewright import _cpu
from tilewright.verify.cases import select_cases
from tilewright.verify.run import run_case


@pytest.fixture
def restore_isa() -> Iterator[None]:
    before = _cpu.isa()
    yield
    _cpu.set_isa(before)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


CU = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
GRADIENTS: dict[str, tuple[Callable[..., Any], list[torch.Tensor]]] = {
    "attention": (
        lambda q, k, v, m, s: tw.attention(
            q, k, v, mask=m, sinks=s, causal="bottom_right", softcap=2.0, dropout_p=0.3, return_lse=True
        ),
        [leaf(2, 4, 3, 5), leaf(2, 2, 6, 5), leaf(2, 2, 6, 3), leaf(4, 1, 6), leaf(4)],
    ),
    "varlen_attention": (
        lambda q, k, v, s: tw.varlen_attention(q, k, v, CU, CU, 3, 3, sinks=s, window=(1, None), return_lse=True),
        [leaf(5, 2, 3), leaf(5, 1, 3), leaf(5, 1, 2), leaf(2)],
    ),
    "softmax": (lambda x, m: tw.softmax(x, mask=m, scale=0.7, causal="top_left"), [leaf(2, 5, 7), leaf(5, 1)]),
    "softmax, dim 0": (lambda x: tw.softmax(x, 0), [leaf(5, 6)]),
    "log_softmax": (lambda x: tw.log_softmax(x, 1), [leaf(2, 5, 3)]),
    "ffn": (
        lambda x, w, o, b, c: tw.ffn(x, w, o, b_in=b, b_out=c, residual=x, activation="gelu", dropout_p=0.2),
        [leaf(3, 4), leaf(7, 4), leaf(4, 7), leaf(7), leaf(4)],
    ),
    "ffn, gated": (
        lambda x, w, o: tw.ffn(x, w, o, activation="swiglu", recompute=True),
        [leaf(3, 4), leaf(14, 4), leaf(4, 7)],
    ),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradcheck(case: str) -> None:
    function, inputs = GRADIENTS[case]

    def seeded(*args: torch.Tensor) -> Any:
        torch.manual_seed(3)
        return function(*args)

    with tw.use_backend("cpu"):
        assert gradcheck(seeded, inputs)


@pytest.mark.usefixtures("restore_isa")
@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_every_instruction_set_passes(isa: str) -> None:
    _cpu.set_isa(isa)
    cases = select_cases()[3::29]
    if isa in ("amx", "tiles"):  # what they do not leave to another one
        cases = [c for c in select_cases() if c.dtype is torch.bfloat16 and not c.op.endswith("softmax")][::5]
    for case in cases:
        (record,) = run_case(case, ["cpu"])
        assert record.status == "passed", f"{isa} {case.id}: {record.problems}"


@pytest.mark.usefixtures("restore_isa")
@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_the_backward_has_the_scores_of_the_forward_to_the_bit(isa: str) -> None:
    """The only key of a row has all its weight whatever its score: the gradient is 0, not the scores' rounding."""
    _cpu.set_isa(isa)
    q, k, v = (torch.randn(1, 1, s, 109, dtype=torch.bfloat16, requires_grad=True) for s in (83, 1, 1))
    out = tw.attention(q, k, v)
    dq, dk = torch.autograd.grad(out, (q, k), torch.randn_like(out))
    assert not dq.any() and not dk.any(), f"{isa}: up to {dq.abs().max():.1e}"


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("causal", [None, "bottom_right"])
def test_results_repeat_bitwise_and_threads_change_only_rounding(causal: str | None) -> None:
    q, k, v = (torch.randn(1, h, 190, 40, requires_grad=True) for h in (2, 1, 1))
    x, w_in, w_out = torch.randn(70, 96), torch.randn(130, 96), torch.randn(96, 130)
    wide = torch.randn(2, 300_001)
    results: dict[int, list[torch.Tensor]] = {}
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        out = tw.attention(q, k, v, causal=causal)
        assert isinstance(out, torch.Tensor)
        grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        found = [out.detach(), *grads, tw.ffn(x, w_in, w_out), tw.softmax(wide)]
        if threads in results:
            assert all(torch.equal(a, b) for a, b in zip(found, results[threads], strict=True)), "a rerun differs"
        results[threads] = found
    for threads in (2, 3):
        for a, b in zip(results[threads], results[1], strict=True):
            torch.testing.assert_close(a, b)


def test_rows_of_a_million_columns() -> None:
    x = torch.randn(3, 1_048_577) * 3
    reference = torch.softmax(x.double(), -1)
    torch_error = (torch.softmax(x, -1) - reference).abs()
    error = (tw.softmax(x, backend="cpu") - reference).abs()
    assert error.max() <= 1.5 * torch_error.max() + 1e-7 * reference.max()
    assert error.mean() <= 1.1 * torch_error.mean()
    assert abs(tw.softmax(x[0], backend="cpu").double().sum().item() - 1.0) < 1e-5


def test_huge_logits_stay_finite() -> None:
    q = torch.full((1, 1, 40, 16), 50.0)
    k = torch.randn(1, 1, 40, 16) * 50
    v = torch.randn(1, 1, 40, 16)
    out, lse = tw.attention(q, k, v, scale=1.0, return_lse=True, backend="cpu")
    assert out.isfinite().all() and lse.isfinite().all() and lse.abs().max() > 1e3
    x = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    torch.testing.assert_close(tw.softmax(x, backend="cpu"), torch.softmax(x, -1))


def test_memory_is_linear_in_the_sequence_length() -> None:
    """A score matrix of this call would take 4 GB; the process may not grow by more than a few tensors."""
    import resource

    q = torch.randn(1, 1, 32768, 16)
    k = v = torch.randn(1, 1, 32768, 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tw.attention(q, k, v, causal="top_left", window=(256, 0), backend="cpu")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"peak memory grew by {grown} kB"


def test_cache_is_updated_in_place_and_nothing_else_is() -> None:
    cache = torch.full((2, 1, 8, 4), 7.0)
    new = torch.randn(2, 1, 2, 4)
    lengths = torch.tensor([3, 5], dtype=torch.int32)
    before = lengths.clone()
    tw.kvcache_attention(
        torch.randn(2, 2, 2, 4), cache, cache.clone(), k=new, v=new, cache_seqlens=lengths, backend="cpu"
    )
    assert torch.equal(lengths, before)
    expected = torch.full((2, 1, 8, 4), 7.0)
    expected[0, :, 3:5], expected[1, :, 5:7] = new[0], new[1]
    assert torch.equal(cache, expected)


def test_fixed_splits_make_a_sequence_independent_of_its_batch() -> None:
    q, k, v = torch.randn(3, 2, 1, 32), torch.randn(3, 1, 500, 32), torch.randn(3, 1, 500, 32)
    together = tw.kvcache_attention(q, k, v, num_splits=4, backend="cpu")
    assert isinstance(together, torch.Tensor)
    for b in range(3):
        alone = tw.kvcache_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], num_splits=4, backend="cpu")
        assert torch.equal(alone, together[b : b + 1])
