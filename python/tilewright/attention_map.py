"""Which keys a query attends to: chosen rows of the attention matrix, or each row's largest entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ops._checks import accumulator, check_device, shape
from .ops._features import OPTIONS_DOC
from .ops.attention import AttentionCall, prepare

#: Scores computed at once, in elements: 4 MiB of float32, small beside any model and large beside a call's overhead.
TILE = 1 << 20


class TopKeys(NamedTuple):
    """values (B, H, R, k): the largest weights of each query, descending; indices (B, H, R, k) int64: their keys, -1
    with weight 0 where a query sees fewer than k."""

    values: Tensor
    indices: Tensor


def attention_map(
    q: Tensor,
    k: Tensor,
    *,
    rows: Sequence[int] | Tensor | None = None,
    top_k: int | None = None,
    mask: Tensor | None = None,
    causal: str | None = None,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    layout: str = "bhsd",
    lse: Tensor | None = None,
) -> Tensor | TopKeys:
    call = prepare(
        q,
        k,
        k,  # shapes and types of v do not matter here, and those of k are right
        mask=mask,
        causal=causal,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        dropout_p=0.0,
        scale=scale,
        layout=layout,
        deterministic=False,
    )
    wanted = _check_rows(rows, call.q.shape[2])
    keys = call.k.shape[2]
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise TypeError(f"top_k must be an int, got {type(top_k).__name__}")
        if not 1 <= top_k <= keys:
            raise ValueError(f"top_k={top_k} must be between 1 and the {keys} positions of k")
    _check_lse(lse, call)
    # prepare has cast what autocast casts; the products of these are accumulated in float32, as in the kernels.
    with torch.no_grad(), torch.autocast(call.q.device.type, enabled=False):
        return _weights(call, wanted, lse) if top_k is None else _top_keys(call, wanted, lse, top_k)


attention_map.__doc__ = f"""Attention weights, ``softmax(scale * q @ k^T)``, of chosen rows or of each row's top keys.

    The weights are those with which ``tilewright.attention`` of the same options averages the values (before dropout).
    They are computed in tiles: beside the result and a copy of one head's keys in float32, no tensor has more than
    max(2^20, Sk) elements, so that the map of a long text costs no S x S matrix. ``rows=None`` without ``top_k`` asks
    for that matrix, and gets it.

    The result has no gradient; inputs that require one are read all the same.

    Args:
        q: (B, H, Sq, D); float32, float16, bfloat16 or float64. k: (B, Hkv, Sk, D), q's dtype and device.
        rows: R query positions, ints or a one-dimensional integer tensor, negative ones counted from the end; all when
            None.
        top_k: answer the ``top_k`` keys of the largest weights only. Which of equal weights come first is not said.
        {OPTIONS_DOC[: OPTIONS_DOC.index("backend:")].format(mask_shape="(B, H, Sq, Sk)").strip()}
        layout: "bhsd", or "bshd" when q and k are (B, S, H, D).
        lse: (B, H, Sq), float32 (float64 for float64 inputs): the second result of ``tilewright.attention(...,
            return_lse=True)`` with the same options, which saves summing each row again. It holds the sinks already.

    Returns:
        (B, H, R, Sk), float32 (float64 for float64 inputs); with top_k a pair ``values, indices``, (B, H, R, top_k)
        each. A row sums to 1, with sinks to less; a query with nothing to attend to has weights of 0.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """


def _check_rows(rows: Any, seqlen_q: int) -> Tensor:
    """int64 positions in host memory, none negative."""
    if rows is None:
        return torch.arange(seqlen_q, device="cpu")
    if isinstance(rows, Tensor):
        if rows.dim() != 1 or rows.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"rows must be a one-dimensional int32 or int64 tensor, got {rows.dtype} {shape(rows)}")
        rows = rows.tolist()
    elif not isinstance(rows, Sequence) or any(isinstance(r, bool) or not isinstance(r, int) for r in rows):
        raise TypeError(f"rows={rows!r} must be a sequence of ints or a one-dimensional integer tensor")
    for row in rows:
        if not -seqlen_q <= row < seqlen_q:
            raise ValueError(f"rows holds {row}; q has {seqlen_q} positions")
    return torch.tensor([row % seqlen_q for row in rows], dtype=torch.int64, device="cpu")


def _check_lse(lse: Any, call: AttentionCall) -> None:
    if lse is None:
        return
    if not isinstance(lse, Tensor):
        raise TypeError(f"lse must be a torch.Tensor, got {type(lse).__name__}")
    check_device("lse", lse, "q", call.q)
    expected = accumulator(call.q.dtype)
    if lse.dtype != expected or lse.shape != call.q.shape[:3]:
        raise ValueError(
            f"lse is {lse.dtype} {shape(lse)}; it must be {expected} (B, H, Sq) = {tuple(call.q.shape[:3])}"
        )


class _Tile(NamedTuple):
    """Masked scores (R, high - low) of some rows of one head, the keys outside [low, high) being excluded for all."""

    place: tuple[int, int, slice]
    low: int
    high: int
    scores: Tensor
    lse: Tensor | None
    sink: Tensor | None

    def weights(self, scores: Tensor) -> Tensor:
        """exp(scores) over the rows' denominators; ``scores`` may be a part of the tile's own."""
        if self.lse is not None:
            # An empty row has lse -inf and scores of -inf, whose difference is not a number.
            return torch.exp(scores - self.lse.masked_fill(self.lse == -torch.inf, torch.inf).unsqueeze(-1))
        top = self.scores.amax(-1, keepdim=True)
        if self.sink is not None:
            top = torch.maximum(top, self.sink)
        top = top.masked_fill(top == -torch.inf, 0.0)
        total = torch.exp(self.scores - top).sum(-1, keepdim=True)
        if self.sink is not None:
            total += torch.exp(self.sink - top)
        return torch.exp(scores - top) / total.masked_fill(total == 0, 1.0)


def _tiles(call: AttentionCall, rows: Tensor, lse: Tensor | None) -> Iterator[_Tile]:
    batch, heads, seqlen_q, _ = call.q.shape
    seqlen_k, group = call.k.shape[2], heads // max(call.k.shape[1], 1)
    dtype, device = accumulator(call.q.dtype), call.q.device
    shift = 0 if call.causal == "top_left" else seqlen_k - seqlen_q
    step = max(1, TILE // max(seqlen_k, 1))
    mask = None if call.mask is None else call.mask.expand(batch, heads, seqlen_q, seqlen_k)
    chunks = []
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        low, high = _visible(call, int(part.min()) + shift, int(part.max()) + shift, seqlen_k)
        if low < high:
            chunks.append((slice(start, start + step), part.to(device), low, high))
    for b, h in product(range(batch), range(heads)):
        keys = call.k[b, h // group].to(dtype)
        for place, part, low, high in chunks:
            s = (call.q[b, h][part].to(dtype) @ keys[low:high].t()) * call.scale
            if call.softcap > 0.0:
                s = call.softcap * torch.tanh(s / call.softcap)
            distance = part[:, None] + shift - torch.arange(low, high, device=device)
            if call.alibi_slopes is not None:
                s -= call.alibi_slopes[b, h].to(dtype) * distance.abs()
            if call.causal is not None:
                s.masked_fill_(distance < 0, -torch.inf)
            if call.window_left >= 0:
                s.masked_fill_(distance > call.window_left, -torch.inf)
            if call.window_right >= 0:
                s.masked_fill_(distance < -call.window_right, -torch.inf)
            if mask is not None:
                tile = mask[b, h, :, low:high][part]
                s = s.masked_fill_(~tile, -torch.inf) if tile.dtype == torch.bool else s + tile.to(dtype)
            sink = None if call.sinks is None else call.sinks[h].to(dtype)
            yield _Tile((b, h, place), low, high, s, None if lse is None else lse[b, h][part], sink)


def _visible(call: AttentionCall, first: int, last: int, seqlen_k: int) -> tuple[int, int]:
    """The keys [low, high) that causal bound and window leave to any query between two, both counted as keys are."""
    low, high = 0, seqlen_k
    if call.causal is not None:
        high = min(high, last + 1)
    if call.window_right >= 0:
        high = min(high, last + call.window_right + 1)
    if call.window_left >= 0:
        low = max(low, first - call.window_left)
    return low, high


def _weights(call: AttentionCall, rows: Tensor, lse: Tensor | None) -> Tensor:
    sizes = (*call.q.shape[:2], len(rows), call.k.shape[2])
    out = call.q.new_zeros(sizes, dtype=accumulator(call.q.dtype))
    for tile in _tiles(call, rows, lse):
        out[tile.place][:, tile.low : tile.high] = tile.weights(tile.scores)
    return out


def _top_keys(call: AttentionCall, rows: Tensor, lse: Tensor | None, top_k: int) -> TopKeys:
    sizes = (*call.q.shape[:2], len(rows), top_k)
    values = call.q.new_zeros(sizes, dtype=accumulator(call.q.dtype))
    indices = torch.full(sizes, -1, dtype=torch.int64, device=call.q.device)
    for tile in _tiles(call, rows, lse):
        # By scores, not weights: these differ also where weights are too small for their type.
        count = min(top_k, tile.high - tile.low)
        scores, found = tile.scores.topk(count)
        values[tile.place][:, :count] = tile.weights(scores)
        indices[tile.place][:, :count] = (found + tile.low).masked_fill(scores == -torch.inf, -1)
    return TopKeys(values, indices)
