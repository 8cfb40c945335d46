"""The calls whose kernels the tables of machine code list: every configuration, with the options that change its code.

Each is a call of the public op, so that what is listed is what a GPU would be asked to run. Nothing is computed:
tensors are uninitialised, and only as large as makes a kernel choose its large tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import tilewright as tw

from ..triton_kernels import softmax_table
from ..triton_kernels.attention_table import WIDTHS

#: Bytes of an element, as tables of configurations name dtypes.
DTYPES = {2: torch.bfloat16, 4: torch.float32}

#: (name, call). The name says dtype, size and options; the kernel's own comes before it.
Calls = Iterator[tuple[str, Callable[[], Any]]]


def made(*shape: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=grad)


# --- attention -------------------------------------------------------------------------------------------------------

_ROWS = 1024  # several of the largest tiles, and TMA
_CAUSAL: dict[str, Any] = {"causal": "bottom_right"}
_WINDOW: dict[str, Any] = {**_CAUSAL, "window": (100, None)}
#: "mask", "alibi", "sinks" and "lse" stand for what is made of them.
_OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "causal": _CAUSAL,
    "window": _WINDOW,
    "bool mask": {"mask": torch.bool},
    "float mask": {"mask": True},
    "alibi": {**_CAUSAL, "alibi": True},
    "softcap": {**_CAUSAL, "softcap": 30.0},
    "dropout": {**_CAUSAL, "dropout_p": 0.1},
    "window softcap": {**_WINDOW, "softcap": 30.0},
    "float mask dropout": {"mask": True, "dropout_p": 0.1},
    "alibi softcap dropout": {**_CAUSAL, "alibi": True, "softcap": 30.0, "dropout_p": 0.1},
    "everything": {
        **_WINDOW, "mask": True, "alibi": True, "softcap": 30.0, "dropout_p": 0.1, "sinks": True, "lse": True,
        "scale": -0.1,
    },
}  # fmt: skip
_DECODE: dict[str, dict[str, Any]] = {
    "": {"group": 1, "num_splits": 1},
    "packed split": {"num_splits": 256},
    "paged packed split": {"num_splits": 256, "paged": True},
    "paged window sinks": {"num_splits": 1, "paged": True, "sinks": True, **_WINDOW},
}


def _attend(dtype: torch.dtype, width: int, rows: int = _ROWS, **options: Any) -> None:
    """Forward and backward."""
    q, k, v = (made(1, 2, rows, width, dtype=dtype, grad=True) for _ in "qkv")
    mask, lse = options.pop("mask", None), options.pop("lse", False)
    if mask is not None:
        kind = dtype if mask is True else mask
        options["mask"] = made(1, 2, rows, rows, dtype=kind, grad=kind.is_floating_point)
    if options.pop("alibi", False):
        options["alibi_slopes"] = made(2, dtype=torch.float32)
    if options.pop("sinks", False):
        options["sinks"] = made(2, dtype=dtype, grad=True)
    found = tw.attention(q, k, v, return_lse=lse, backend="triton", **options)
    outputs = (found,) if isinstance(found, Tensor) else found
    torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])


def _attend_packed(dtype: torch.dtype, width: int) -> None:
    q, k, v = (made(_ROWS, 2, width, dtype=dtype, grad=True) for _ in "qkv")
    boundaries = torch.tensor([0, _ROWS], dtype=torch.int32)
    out = tw.varlen_attention(q, k, v, boundaries, boundaries, _ROWS, _ROWS, backend="triton", **_CAUSAL)
    assert isinstance(out, Tensor)
    out.backward(torch.empty_like(out))


def _decode(
    dtype: torch.dtype, width: int, group: int = 4, paged: bool = False, sinks: bool = False, **options: Any
) -> None:
    keys, page, heads_kv = 64 * 1024, 256, 2
    shape = (keys // page, heads_kv, page, width) if paged else (1, heads_kv, keys, width)
    k_cache, v_cache, new = (made(*s, dtype=dtype) for s in (shape, shape, (1, heads_kv, 1, width)))
    if paged:
        options["block_table"] = torch.zeros(1, keys // page, dtype=torch.int32)
    if sinks:
        options["sinks"] = made(heads_kv * group, dtype=dtype)
    q = made(1, heads_kv * group, 1, width, dtype=dtype)
    lengths = torch.tensor([keys - 1], dtype=torch.int32)
    tw.kvcache_attention(q, k_cache, v_cache, k=new, v=new, cache_seqlens=lengths, backend="triton", **options)


def attention(architecture: str) -> Calls:
    for size, width in ((s, w) for s in DTYPES for w in WIDTHS):
        dtype, name = DTYPES[size], f"{size},{width}"
        # Small head dims, and float32, have the same code but for loads and products.
        few = width < 64 or size == 4
        for option, given in _OPTIONS.items():
            if not few or option in ("", "everything"):
                yield f"{name} {option}".rstrip(), partial(_attend, dtype, width, **given)
        if not few:
            yield f"{name} varlen", partial(_attend_packed, dtype, width)
            if architecture != "sm_80":
                yield f"{name} short", partial(_attend, dtype, width, rows=64)
        for option, given in _DECODE.items():
            yield f"{name} {option}".rstrip(), partial(_decode, dtype, width, **given)
        # Rows that begin at no multiples of 16 bytes.
        yield f"{name} of {width - 1}", partial(_attend, dtype, width - 1)
        yield f"{name} packed split of {width - 1}", partial(_decode, dtype, width - 1, num_splits=256)


# --- softmax ---------------------------------------------------------------------------------------------------------


def _softmax(shape: tuple[int, ...], dtype: torch.dtype, *, dim: int = -1, log: bool = False, **options: Any) -> None:
    x = made(*shape, dtype=dtype, grad=True)
    mask = options.pop("mask", None)
    if mask is not None:
        options["mask"] = made(*shape, dtype=mask, grad=mask.is_floating_point)
    y = (tw.log_softmax if log else tw.softmax)(x, dim, backend="triton", **options)
    y.backward(torch.empty_like(y))


def _softmax_far_apart() -> None:
    """Rows so far apart that offsets need 64 bits."""
    tw.softmax(torch.empty_strided((2, 4096), (2**31, 1), dtype=torch.bfloat16), backend="triton")


def softmax(architecture: str) -> Calls:
    full: dict[str, Any] = {"log": True, "causal": "top_left", "mask": torch.float32}
    widest, across = softmax_table.WIDEST["softmax_forward"]
    powers = [1 << n for n in range(widest.bit_length())]
    for columns in (*powers, 8 * widest):
        rows = 256 if columns <= widest else 1024  # wide rows, and enough of them for every processor
        yield f"{columns} bf16", partial(_softmax, (rows, columns), torch.bfloat16)
        if columns <= widest // 2:
            yield f"{columns} fp32 log causal mask", partial(_softmax, (4, 64, columns), torch.float32, **full)
    for columns in (*(n for n in powers if n <= across), 8 * across):
        yield f"across {columns} bf16", partial(_softmax, (64, columns, 256), torch.bfloat16, dim=1)
    for columns in (64, 1024, 16384):
        yield f"{columns} bf16 causal", partial(_softmax, (4, 64, columns), torch.bfloat16, causal="top_left")
        yield f"{columns} bf16 bool mask", partial(_softmax, (4, 64, columns), torch.bfloat16, mask=torch.bool)
    yield f"{8 * widest} bf16 pieces", partial(_softmax, (2, 8 * widest), torch.bfloat16)
    yield f"{8 * widest} fp32 log causal mask pieces", partial(_softmax, (2, 8 * widest), torch.float32, **full)
    yield "4096 bf16 far apart", _softmax_far_apart


# --- ffn -------------------------------------------------------------------------------------------------------------

#: Rows with tiles for every multiprocessor, fewer, and as few as decoding has.
_LARGE, _MEDIUM, _SMALL = 8192, 128, 8


def _block(
    dtype: torch.dtype, rows: int, activation: str, *, width: int = 1024, transposed: bool = False, train: bool = True
) -> None:
    hidden, gated = 4096, activation in ("reglu", "geglu", "geglu_tanh", "swiglu")
    inner = 2 * hidden if gated else hidden

    def weight(m: int, n: int) -> Tensor:
        w = made(n, m, dtype=dtype).t() if transposed else made(m, n, dtype=dtype)
        return w.requires_grad_(train)

    x = made(rows, width, dtype=dtype, grad=train)
    extra: dict[str, Any] = {}
    if train:
        extra = {"b_in": made(inner, dtype=dtype, grad=True), "b_out": made(width, dtype=dtype, grad=True)}
        extra.update(residual=made(rows, width, dtype=dtype), dropout_p=0.1)
    out = tw.ffn(x, weight(inner, width), weight(width, hidden), activation=activation, backend="triton", **extra)
    if train:
        out.backward(torch.empty_like(out))


def ffn(architecture: str) -> Calls:
    for size, dtype in DTYPES.items():
        key = "half" if size == 2 else "fp32"
        for rows, word in ((_LARGE, ""), (_MEDIUM, " few tiles"), (_SMALL, " small")):
            every = size == 2 and rows == _LARGE
            for act in ("relu2", "gelu", "gelu_tanh", "geglu", "swiglu") if every else ("gelu_tanh", "swiglu"):
                yield f"{key}{word} {act}", partial(_block, dtype, rows, act)
            yield f"{key}{word} plain", partial(_block, dtype, rows, "gelu_tanh", train=False)
        for act in ("gelu_tanh", "swiglu"):
            yield f"{key} {act} ragged", partial(_block, dtype, _MEDIUM, act, width=1040)
            yield f"{key} {act} transposed", partial(_block, dtype, _LARGE, act, transposed=True)


CALLS: dict[str, Callable[[str], Calls]] = {"attention": attention, "softmax": softmax, "ffn": ffn}
