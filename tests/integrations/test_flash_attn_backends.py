"""FlashAttention's functions on CUDA and Triton kernels: on the GPU where there is one, emulated elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from flash_attn_reference import assert_near, attend, attend_batch, rotate_positions
from torch import Tensor

import tilewright as tw
from tilewright import registry
from tilewright.backends import cuda
from tilewright.integrations import flash_attn as fa

B, S, H, HKV, D = 2, 9, 2, 1, 16


@pytest.fixture(params=["cuda", "triton"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    caches = (cuda.emulated, cuda.unavailable, cuda.kernels, registry.unavailable, registry.find)
    if not torch.cuda.is_available():
        monkeypatch.setenv(cuda.EMULATE, "1")
    for cached in caches:
        cached.cache_clear()
    if (why := tw.backends()[request.param]) is not None:
        pytest.skip(why)
    with tw.use_backend(request.param):
        yield "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def r(device: str, *shape: int) -> Tensor:
    return torch.randn(shape).half().to(device)


def test_dense_with_dropout_and_gradient(device: str) -> None:
    q, k, v = (r(device, B, S, n, D).requires_grad_() for n in (H, HKV, HKV))
    out, lse, dropped = fa.flash_attn_func(q, k, v, 0.3, causal=True, window_size=(5, 0), return_attn_probs=True)
    on_cpu = [t.detach().cpu().requires_grad_() for t in (q, k, v)]
    expected, expected_lse = attend_batch(
        *on_cpu, causal=True, window_size=(5, 0), kept=(dropped >= 0).cpu(), dropout_p=0.3
    )
    assert (dropped < 0).any(), "nothing was dropped"
    assert_near(out.cpu(), expected, "out")
    assert_near(lse.cpu().half(), expected_lse, "softmax_lse")
    g = torch.randn(out.shape)
    found = torch.autograd.grad(out, (q, k, v), g.to(out))
    for a, b in zip(found, torch.autograd.grad(expected, on_cpu, g.half().double()), strict=True):
        assert_near(a.cpu(), b.double(), "gradient", scale=max(1.0, float(b.abs().max())))


def test_varlen_over_pages(device: str) -> None:
    table = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32, device=device)
    k, v = r(device, 4, 4, HKV, D), r(device, 4, 4, HKV, D)
    lengths = torch.tensor([0, 5, 12], dtype=torch.int32, device=device)
    for queries in ([1, 1], [3, 1]):
        q, bounds = r(device, sum(queries), H, D), torch.tensor([0, queries[0], sum(queries)])
        out = fa.flash_attn_varlen_func(
            q, k, v, bounds.int().to(device), lengths, max(queries), 7, causal=True, block_table=table
        )
        for b, n in enumerate((5, 7)):
            keys, values = (t[table[b].long()].flatten(0, 1)[:n].cpu() for t in (k, v))
            rows = slice(int(bounds[b]), int(bounds[b + 1]))
            assert_near(out[rows].cpu(), attend(q[rows].cpu(), keys, values, causal=True)[0], f"sequence {b}")


def test_cache_is_updated_in_place(device: str) -> None:
    q, new = r(device, B, 2, H, D), (r(device, B, 2, HKV, D), r(device, B, 2, HKV, D))
    caches = [r(device, 3, 12, HKV, D) for _ in range(2)]
    filled, leftpad = (torch.tensor(n, dtype=torch.int32, device=device) for n in ([4, 9], [1, 3]))
    idx = torch.tensor([2, 0], dtype=torch.int32, device=device)
    angles = torch.rand(12, D // 2, device=device)
    cos, sin = angles.cos().half(), angles.sin().half()
    contents = [c.cpu().double() for c in caches]
    out = fa.flash_attn_with_kvcache(
        q, *caches, *new, cos, sin, filled, cache_batch_idx=idx, cache_leftpad=leftpad, causal=True
    )
    for b, n in enumerate(filled.tolist()):
        entry, where = int(idx[b]), torch.arange(n, n + 2)
        contents[0][entry, where] = rotate_positions(new[0][b].cpu(), cos.cpu(), sin.cpu(), where, True)
        contents[1][entry, where] = new[1][b].cpu().double()
        queries = rotate_positions(q[b].cpu(), cos.cpu(), sin.cpu(), where, True)
        keys, values = (c[entry, : n + 2] for c in contents)
        expected, _ = attend(queries, keys, values, causal=True, first_key=int(leftpad[b]))
        assert_near(out[b].cpu(), expected, f"out of sequence {b}")
    for cache, wanted in zip(caches, contents, strict=True):
        assert_near(cache.cpu(), wanted, "the cache")
