"""The right answers, in float64, of calls too large for the reference: a part of each tensor, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

#: Numbers of a chunk of weights: 128 MB in float64.
CHUNK = 2**24

#: Of a query's and a key's number, (R, 1) and (Sk,): which pairs count.
Keep = Callable[[Tensor, Tensor], Tensor]


def distance(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest of the tensors' distances, ||found - expected|| / ||expected||; NaN where one holds NaN."""
    worst = 0.0
    for f, e in zip(found, expected, strict=True):
        if f.shape != e.shape:
            raise ValueError(f"a result has shape {tuple(f.shape)} instead of {tuple(e.shape)}")
        d = float((f.double() - e).norm() / e.norm())
        worst = d if d != d or d > worst else worst
        if worst != worst:
            break
    return worst


def attention(q: Tensor, k: Tensor, v: Tensor, dout: Tensor | None, keep: Keep | None = None) -> list[Tensor]:
    """Of the query heads q (G, S, D) that share a key head k, v (Sk, D): out (G, S, D), or with dout dq, dk and dv."""
    keys, values, columns = k.double(), v.double(), torch.arange(k.shape[0], device=k.device)
    step, scale = max(1, CHUNK // max(1, k.shape[0])), q.shape[-1] ** -0.5
    outs, dqs, dk, dv = [], [], torch.zeros_like(keys), torch.zeros_like(values)
    for head in range(q.shape[0]):
        for first in range(0, q.shape[1], step):
            rows = q[head, first : first + step].double()
            scores = rows @ keys.T * scale
            if keep is not None:
                numbers = torch.arange(first, first + len(rows), device=q.device)[:, None]
                scores.masked_fill_(~keep(numbers, columns), -torch.inf)
            weights = torch.softmax(scores, -1)
            out = weights @ values
            outs.append(out)
            if dout is not None:
                upstream = dout[head, first : first + step].double()
                dv += weights.T @ upstream
                ds = weights * (upstream @ values.T - (upstream * out).sum(-1, keepdim=True)) * scale
                dqs.append(ds @ keys)
                dk += ds.T @ rows
    if dout is None:
        return [torch.cat(outs).view(*q.shape[:2], -1)]
    return [torch.cat(dqs).view(*q.shape[:2], -1), dk, dv]


def softmax_distance(x: Tensor, dy: Tensor | None, found: Tensor) -> float:
    """Of the softmax, or with dy of its gradient, over all rows."""
    step, worst = max(1, CHUNK // max(1, x.shape[-1])), 0.0
    for i in range(0, x.shape[0], step):
        y = torch.softmax(x[i : i + step].double(), -1)
        if dy is not None:
            dy_i = dy[i : i + step].double()
            y = y * (dy_i - (y * dy_i).sum(-1, keepdim=True))
        d = distance([found[i : i + step]], [y])
        if not d <= worst:
            worst = d
    return worst
