"""FlashAttention 2's documented semantics in float64, written for the tests alone: nothing of tilewright is used."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    softmax_scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    first_key: int = 0,
    kept: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """One sequence: q (Sq, H, D), k and v (Sk, Hkv, D and Dv) -> out (Sq, H, Dv), lse (H, Sq), float64.

    first_key: keys before it are padding. kept: (H, Sq, Sk), what dropout kept. alibi_slopes: (H,).
    """
    q, k, v = (t.double() for t in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = 1 / math.sqrt(q.shape[2]) if softmax_scale is None else softmax_scale
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    i = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
    j = torch.arange(k.shape[0])[None]
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.double()[:, None, None] * (i - j).abs()
    left, right = window_size
    visible = j >= first_key
    if causal:
        visible = visible & (j <= i)
    elif right >= 0:
        visible = visible & (j <= i + right)
    if left >= 0:
        visible = visible & (j >= i - left)
    scores = scores.masked_fill(~visible, -math.inf)
    lse = torch.logsumexp(scores, -1) if k.shape[0] else scores.new_full(scores.shape[:2], -math.inf)
    p = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1))
    if kept is not None:
        p = p * kept / (1 - dropout_p)
    return torch.einsum("hij,jhd->ihd", p, v), lse


def attend_batch(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """q (B, Sq, H, D) and so on; alibi_slopes (H,) or (B, H), kept (B, H, Sq, Sk) -> (B, Sq, H, Dv), (B, H, Sq)."""
    slopes, kept = options.pop("alibi_slopes", None), options.pop("kept", None)
    results = []
    for b in range(q.shape[0]):
        of_b = slopes if slopes is None or slopes.dim() == 1 else slopes[b]
        kept_b = None if kept is None else kept[b]
        results.append(attend(q[b], k[b], v[b], alibi_slopes=of_b, kept=kept_b, **options))
    return torch.stack([out for out, _ in results]), torch.stack([lse for _, lse in results])


def rotate_positions(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """x (S, H, D), rotated feature pair by feature pair at ``positions`` (S,), in float64."""
    out, half = x.double().clone(), cos.shape[1]
    for n in range(half):
        a, b = (2 * n, 2 * n + 1) if interleaved else (n, n + half)
        c, s = cos[positions, n, None].double(), sin[positions, n, None].double()
        first, second = x[..., a].double(), x[..., b].double()
        out[..., a], out[..., b] = first * c - second * s, first * s + second * c
    return out


def tolerance(dtype: torch.dtype) -> float:
    """For values of about 1: a few roundings to ``dtype``, of the output and of the probabilities inside a kernel."""
    return 8 * torch.finfo(dtype).eps


def assert_near(actual: Tensor, expected: Tensor, what: str, scale: float = 1.0) -> None:
    limit = scale * tolerance(actual.dtype)
    error = (actual.double() - expected).abs().nan_to_num(nan=0.0) if actual.numel() else actual.new_zeros(1)
    same_infinities = torch.equal(actual.isinf(), expected.isinf())
    assert actual.isnan().sum() == 0 and same_infinities, f"{what}: NaN, or infinities that the reference has not"
    assert error.max() <= limit, (
        f"{what} differs from the float64 reference by {error.max():.2e}, more than {limit:.2e}"
    )


def assert_same_gradients(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    """Gradients of both functions' outputs, for one random cotangent."""
    out, expected = ours(), theirs()
    cotangent = torch.randn(out.shape, dtype=torch.float64)
    found = torch.autograd.grad(out, inputs, cotangent.to(out.dtype))
    wanted = torch.autograd.grad(expected, inputs, cotangent.to(out.dtype).double())
    for n, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert_near(a, b.double(), f"gradient of input {n}", scale=max(1.0, float(b.abs().max())))
