"""What the kernels' device math has to work around in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from tilewright.triton_kernels.math import INTERPRETED, dot


@triton.jit
def _plain_dot(a, b, out):
    i = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + i, tl.dot(tl.load(a + i), tl.load(b + i)))


@triton.jit
def _our_dot(a, b, out):
    i = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + i, dot(tl.load(a + i), tl.load(b + i), tl.zeros([16, 16], tl.float32)))


def _product(kernel, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=generator).to(dtype) for _ in range(2))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = torch.empty(16, 16, device=device)
    kernel[(1,)](a.to(device), b.to(device), out)
    return out.cpu(), (a.double() @ b.double()).float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_product_is_exact_to_float32(dtype: torch.dtype) -> None:
    found, expected = _product(_our_dot, dtype)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.skipif(not INTERPRETED, reason="about the interpreter")
def test_the_interpreter_still_multiplies_bfloat16_wrongly() -> None:
    """A canary: when this fails, Triton has mended its interpreter, and math.dot need not convert bfloat16 any more."""
    found, expected = _product(_plain_dot, torch.bfloat16)
    assert (found - expected).abs().max() > 1.0, "remove the conversion from triton_kernels/math.py, and this test"
